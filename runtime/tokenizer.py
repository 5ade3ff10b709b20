"""What a tokenizer must be able to do here, and the state that it must not keep.

In: a fast tokenizer. Out: the same, changed where it must be; a `UserError`; lines for the user.
Independent of: how it is loaded, texts.
"""

from tokenizers import normalizers

from runtime.flags import UserError


def check_tokenizer(tokenizer, config, given: str) -> None:
    if not tokenizer.is_fast:
        raise UserError(f"{given}: has no fast tokenizer; choose a model with tokenizer.json")
    if tokenizer.pad_token is None:
        raise UserError(
            f"{given}: has no padding token; give it one (tokenizer.pad_token = "
            "tokenizer.eos_token, save_pretrained there), or choose a model such as DistilBERT"
        )
    # For a folder without tokenizer files, transformers makes one that knows no word. And a token
    # outside the model's vocabulary would end the run at the first text that has it.
    vocabulary = tokenizer.get_vocab()
    size = getattr(config, "vocab_size", None) or len(vocabulary)
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"{given}: holds no tokenizer; save it with tokenizer.save_pretrained there"
        )
    if max(vocabulary.values()) >= size:
        raise UserError(
            f"{given}: its tokenizer has token {max(vocabulary.values())} and the model only "
            f"{size} of them; save the tokenizer that belongs to it there"
        )


def keep_end_token_out(tokenizer) -> None:
    """Make the end token inside a text a space: BART and T5 read their logits at that token, of
    which each text must then have one. Saved in best/, so a pipeline does so, too."""
    end, backend = tokenizer.eos_token, tokenizer.backend_tokenizer
    if end and tokenizer(f"text {end} text")["input_ids"].count(tokenizer.eos_token_id) > 1:
        tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
        steps = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Replace(end, " "), *steps])


def describe_pairs(columns: tuple[str, ...], tokenizer) -> list[str]:
    """A warning if those columns are pairs of texts, and nothing shows where the second begins."""
    single, pair = map(tokenizer.num_special_tokens_to_add, (False, True))
    if len(columns) == 1 or pair > single:
        return []
    name = tokenizer.name_or_path
    return [f"warning: {name} puts no token between the two texts of a pair: it reads them as one"]


def require_pairs(tokenizer, truncation: str) -> None:
    """Raises `UserError` unless the tokenizer can make one row of ids of two texts."""
    name, most = tokenizer.name_or_path, tokenizer.model_max_length
    single, added = map(tokenizer.num_special_tokens_to_add, (False, True))
    if truncation == "head_tail":
        raise UserError("--truncation head_tail: cuts one text, not a pair; give head or tail")
    if added < single:
        raise UserError(
            f"{name}: its tokenizer adds {single} tokens to a text and {added} to a pair of texts; "
            "choose another model, or correct the post_processor in its tokenizer.json"
        )
    if most < added + 2:
        raise UserError(
            f"--max_length {most}: {name} adds {added} tokens to each pair of texts; give "
            f"{added + 2} or more"
        )


def set_truncation_side(tokenizer, truncation: str) -> None:
    tokenizer.truncation_side = "left" if truncation == "tail" else "right"


def clear_last_call(tokenizer) -> None:
    """A fast tokenizer keeps, and saves, the truncation and padding of its last call."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def count_special_tokens(tokenizer) -> tuple[int, int]:
    """(Those before a text, those after it): 1 and 1 for [CLS] ... [SEP], 0 and 2 for XLNet."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return special.index(0), special[::-1].index(0)

"""Whether a model reads texts as this project gives them: found by trying, before any training.

In: a model, a tokenizer. Out: nothing, or a `UserError` that says what is wrong. Independent of:
data, weights decay, training.
"""

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
)

from runtime.flags import UserError, is_out_of_memory
from runtime.hub import LOADING_ERRORS, in_few_words

TOLERANCE = 1e-4  # of the largest logit; rounding is a hundredth of it (docs/details.md)


def position_limit(config, given: str) -> int | None:
    """The most tokens that a model of that configuration has positions for; None: no limit.

    RoBERTa and its kin keep the first positions for padding: of 514 they use 512. Which models do
    shows in the table of positions alone, so the model is made, without memory for its weights.
    Raises `UserError` for what cannot be made a text classifier, such as a model of images.
    """
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"{given}: transformers has no text classifier of a {config.model_type}; {ANOTHER}"
        )
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # -1 in XLNet's
        return None
    if not getattr(text_config, "position_biased_input", True):  # DeBERTa-v3: distances alone
        return None
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except LOADING_ERRORS as error:
        raise UserError(
            f"{given}: cannot be made a classifier ({in_few_words(error)}); {ANOTHER}"
        ) from None
    kept = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if "position" in name
        and getattr(module, "padding_idx", None) is not None
        and len(module.weight) == positions
    ]
    return positions - max(kept, default=0)


ANOTHER = "choose another model, such as distilbert/distilbert-base-uncased"


def require_sound(model: nn.Module, tokenizer, given: str) -> None:
    """Raises `UserError` unless the model takes texts, reads their words, and gives logits for one
    that do not depend on what stands beside it in a batch.

    If they do, the tokenizer is made to pad on the other side: XLNet reads its logits at the last
    place of a row, GPT-2 counts positions from the first. Draws nothing from torch's generators.
    """
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:  # GPT-2's: only the tokenizer knows the token
        text_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    own, faults = tokenizer.padding_side, []
    for side in (own, "left" if own == "right" else "right"):
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side
        faults.append(find_fault(model, tokenizer))
        if not faults[-1]:
            return
    raise UserError(f"{given}: {type(model).__name__} {faults[0]}; {ANOTHER}")


def find_fault(model: nn.Module, tokenizer) -> str:
    """What is wrong with the model's logits; empty if nothing is."""
    try:
        alone, beside = logits_alone_and_beside(model, made_up_texts(tokenizer), tokenizer)
    except Exception as error:  # whatever that model's code raises for texts
        if is_out_of_memory(error):
            raise
        return f"fails ({type(error).__name__}: {in_few_words(error)})"
    if not alone.isfinite().all():
        return "gives logits that are not finite"
    if (alone - beside).abs().max() > TOLERANCE * alone.abs().max():
        return "gives a text other logits when longer texts are beside it in a batch"
    if torch.equal(alone[1], alone[2]):
        return "gives texts of other words the same logits"
    return ""


def pad(texts: list[list[int]], tokenizer) -> dict[str, torch.Tensor]:
    return tokenizer.pad({"input_ids": texts}, return_tensors="pt")


@torch.no_grad()
def logits_alone_and_beside(model: nn.Module, texts: list[list[int]], tokenizer):
    batch = pad(texts, tokenizer)
    was_training = model.training
    model.eval()
    alone = torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])
    beside = model(**batch).logits
    with torch.random.fork_rng(devices=[]):  # its dropout draws as if it had not been here
        model.train()(input_ids=batch["input_ids"][1:2])  # Reformer then takes other lengths
    model.train(was_training)
    return alone, beside


def made_up_texts(tokenizer) -> list[list[int]]:
    """Token ids of three texts: a short one, a longer one, and that with another word in it."""
    vocabulary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    words = [vocabulary[len(vocabulary) * part // 20] for part in range(20)]
    example = tokenizer(tokenizer.decode(words), return_special_tokens_mask=True)
    ids, added = example["input_ids"], example["special_tokens_mask"]
    if all(added):
        raise ValueError("its tokenizer makes no token of its own words")
    before, after = ids[: added.index(0)], ids[len(ids) - added[::-1].index(0) :]
    long = words[: min(8, tokenizer.model_max_length - len(before) - len(after))]
    other = long.copy()
    other[len(long) // 2] = words[-1]
    return [before + words + after for words in (long[:1], long, other)]

"""Masked words: what a batch hides, and a model whose logits are those of the hidden words alone.

In: token ids; a model's name. Out: a model with a masked-word head; batches whose labels are the
hidden tokens. Independent of: the loop, files. Source: Devlin et al. 2019 (arXiv:1810.04805), with
new masks in every epoch (Liu et al. 2019, arXiv:1907.11692).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from data import BatchPlan, Collator
from model import changed_fields, make_trainable
from runtime.flags import UserError
from runtime.hub import load_pretrained, require_weights
from runtime.tokenizer import count_special_tokens

# The first part of the head, by its name in transformers' classes.
HEADS = ("vocab_transform", "cls", "lm_head", "generator_predictions", "predictions", "head")


class MaskedWords(nn.Module):
    """A model for masked words that computes its head at the hidden positions alone: of a
    vocabulary of 30,000 the logits of all positions would take more memory than all layers."""

    def __init__(self, model: nn.Module, given: str):
        super().__init__()
        self.model, self.positions = model, None
        head = next((name for name in HEADS if hasattr(model, name)), None)
        if head is None:
            raise UserError(f"{given}: where a {type(model).__name__} has its head is not known")

        def hidden_alone(_, inputs):
            return (inputs[0][self.positions], *inputs[1:])

        getattr(model, head).register_forward_pre_hook(hidden_alone)

    def forward(self, positions: torch.Tensor, **batch):
        """Logits (hidden words, vocabulary). Args: positions: (texts, tokens) booleans."""
        self.positions = positions
        return self.model(**batch)


def load_masked_words(config, tokenizer) -> tuple[MaskedWords, list[str]]:
    """(`config.model`, lines for the user.) A head that its file lacks is drawn anew, from torch's
    global generator, with the token embeddings as its last matrix where the class ties them."""
    given = f"--model {config.model}"
    model_config = load_pretrained(AutoConfig, config.model, config.revision)
    model, report = load_pretrained(
        AutoModelForMaskedLM,
        config.model,
        config.revision,
        dtype=torch.float32,
        output_loading_info=True,
        **changed_fields(model_config, config),
    )
    require_weights(model, report, given, new_head=True)
    new = sorted(report["missing_keys"])
    notes = [f"{given} has no head for masked words: {', '.join(new)} start anew"] if new else []
    make_trainable(model, config, tokenizer)
    return MaskedWords(model, given), notes


def read_pooler(config) -> dict[str, torch.Tensor]:
    """The weights of BERT's pooler and its kin, by their names in a model with a head. A classifier
    reads it, and no class for masked words has it."""
    base, report = load_pretrained(
        AutoModel, config.model, config.revision, dtype=torch.float32, output_loading_info=True
    )
    own = {name: w for name, w in base.state_dict().items() if name.startswith("pooler.")}
    missing = any(name.startswith("pooler.") for name in report["missing_keys"])
    return {} if missing else {f"{base.base_model_prefix}.{name}": w for name, w in own.items()}


def hidden_counts(lengths: np.ndarray, tokenizer, share: float) -> np.ndarray:
    """(texts,) how many tokens of each are hidden: that share of those that are not special, at
    least one. A number, not a draw for each token: so all processes know the sum of a batch."""
    words = lengths - sum(count_special_tokens(tokenizer))
    return np.minimum(np.maximum(1, np.round(share * words)), words).astype(int)


def hide(ids: list[int], count: int, tokenizer, special: tuple[int, int], rng):
    """(The ids with `count` of them hidden, their places.) Of these 80 % become the mask token,
    10 % any token, 10 % stay.

    Args:
        special: of `count_special_tokens`.
    """
    before, after = special
    places = np.sort(before + rng.choice(len(ids) - before - after, count, replace=False))
    kind, other = rng.random(count), rng.integers(len(tokenizer), size=count)
    hidden = np.array(ids)
    hidden[places] = np.where(
        kind < 0.8, tokenizer.mask_token_id, np.where(kind < 0.9, other, hidden[places])
    )
    return hidden.tolist(), places


def masked_batches(run, updates: range, counts: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
    """This process's batches of those steps, with `positions` and `labels`.

    What is hidden of a text depends on the seed, the epoch and its row alone: a resumed run, or one
    on other processes, hides the same.
    """
    plan: BatchPlan = run.plan
    collate, accelerator = Collator(run.tokenizer), run.accelerator
    special = count_special_tokens(run.tokenizer)
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    for step in updates:
        epoch = (step - 1) // plan.steps_per_epoch
        for part in plan.deal(step)[own]:
            rows, labels, places = [], [], []
            for number in part.tolist():
                ids = run.train_set[number]["input_ids"]
                rng = np.random.default_rng((run.config.seed, epoch, number))
                hidden, at = hide(ids, counts[number], run.tokenizer, special, rng)
                rows.append({"input_ids": hidden, "labels": 0})
                places.append(at)
                labels.append(np.array(ids)[at])
            yield join(collate(rows), places, labels)


def join(batch: dict, places: list[np.ndarray], labels: list[np.ndarray]) -> dict:
    """Empty for a process without a text in a step, whose batch is one text of padding."""
    positions = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
    for row, at in enumerate(places):
        positions[row, at] = True
    labels = np.concatenate([*labels, np.array([], dtype=np.int64)]).astype(np.int64)
    return batch | {"positions": positions, "labels": torch.from_numpy(labels)}

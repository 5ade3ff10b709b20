"""Which texts are validated on, or sampled: drawn by what they say, never by where they stand.

In: labelled texts, a seed. Out: parts of them. Independent of: files, tokenizers, models.
"""

import itertools

import numpy as np
from datasets import Dataset

from runtime.flags import UserError
from runtime.seen import Seen
from runtime.tables import LabelledTexts, column, count_different, require_every_class


def split_validation(
    texts: LabelledTexts, start: Seen, config
) -> tuple[LabelledTexts, LabelledTexts]:
    """(Training texts, validation texts); of IMDb by default 17,500 and 7,500.

    Each class gives its share, at least one text and never all; a class of a single text is trained
    on. Of texts that --model has seen none changes sides: this month's model must not be validated
    on what last month's, from which it starts, has learnt.
    """
    share = 0.3 if config.validation_size is None else config.validation_size
    learnt = np.isin(texts.hashes, start.training)
    validate = np.isin(texts.hashes, start.validation) & ~learnt
    (rows,) = np.nonzero(~learnt & ~validate)
    new = texts.select(rows)
    count = np.bincount(new.labels, minlength=len(new.names))
    several = count_different(new) > 1
    quota = np.clip(share_out(count, round(len(new) * share)), 1, np.maximum(count - 1, 1))
    drawn = draw(new.labels, quota * several, new.hashes, config.validation_seed)
    validate[rows[drawn]] = True
    train, validation = (texts.select(np.flatnonzero(side)) for side in (~validate, validate))
    if len(new) < len(texts) and not (len(train) and len(validation)):
        purpose = "validate" if len(train) else "train"
        raise UserError(
            f"--model {config.model}: has seen {len(texts) - len(new):,} of the {len(texts):,} "
            f"texts of {texts.table.source}, which leaves none to {purpose} on; give others, or "
            "--validation_dataset with texts that it has not seen"
        )
    whole = new.select(np.flatnonzero(several[new.labels])) if len(validation) else texts
    require_every_class(whole, validation, "validation", f"--validation_size {share}")
    return train, validation


def share_out(counts: np.ndarray, size: int) -> np.ndarray:
    """Rows per class, `size` in all, in proportion to `counts` (largest remainder method)."""
    exact = counts * size / max(1, counts.sum())
    quota = np.floor(exact).astype(int)
    largest_remainders = np.argsort(-(exact - quota), kind="stable")
    quota[largest_remainders[: size - quota.sum()]] += 1
    return quota


def draw(labels: np.ndarray, quota: np.ndarray, keys: np.ndarray, seed: int) -> np.ndarray:
    """Draw `quota[label]` rows of each label: their numbers, ascending.

    Which rows is a function of their keys and the seed, not of their order: with the hash of a text
    as its key, a file whose rows were sorted anew keeps its validation texts, and one to which rows
    were added keeps nearly all of them. Rows of equal keys are drawn together or not at all, so no
    text is in training and in validation (97 of IMDb's training reviews occur twice); a text whose
    copies exceed what is left of the quota is skipped.

    Args:
        keys: (rows,) uint64.
    """
    order = np.argsort(shuffle(keys, seed), kind="stable")
    keys, classes, left = keys[order], labels[order].tolist(), quota.tolist()
    starts = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist(), len(keys)]
    drawn = np.zeros(len(order), dtype=bool)
    for start, end in itertools.pairwise(starts):
        copies = classes[start:end]
        if all(left[label] >= copies.count(label) for label in copies):
            drawn[start:end] = True
            for label in copies:
                left[label] -= 1
    return np.sort(order[drawn])


def shuffle(keys: np.ndarray, seed: int) -> np.ndarray:
    """One uint64 per key, in an order that looks random (splitmix64; Steele et al. 2014)."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def sample(texts: LabelledTexts | Dataset, size: int | None, seed: int) -> LabelledTexts | Dataset:
    """At most `size` of them (of a `Dataset` of token ids, too), stratified; all for None."""
    if size is None or size >= len(texts):
        return texts
    if isinstance(texts, Dataset):
        labels, keys = column(texts, "labels").to_numpy(), np.arange(len(texts), dtype=np.uint64)
    else:
        labels, keys = texts.labels, texts.hashes
    return texts.select(draw(labels, share_out(np.bincount(labels), size), keys, seed))

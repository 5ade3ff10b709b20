"""What a user should know of their data before hours are spent on it, a line each.

In: labelled texts; token ids. Out: lines. Independent of: how texts are read, chosen and tokenized.
"""

import numpy as np
from datasets import Dataset

from runtime.flags import UserError
from runtime.tables import LabelledTexts, column, quote_if_odd


def describe_classes(texts: LabelledTexts) -> str:
    """Each class with its count and share, the 20 largest of more."""
    counts = np.bincount(texts.labels, minlength=len(texts.names))
    largest = np.sort(np.argsort(-counts, kind="stable")[:20])
    each = [
        f"{quote_if_odd(texts.names[number])}: {count:,} ({count / len(texts):.1%})"
        for number, count in zip(largest, counts[largest], strict=True)
    ]
    rest = f", and {len(counts) - len(largest):,} smaller ones" * (len(counts) > len(largest))
    return f"{len(counts):,} classes, {', '.join(each)}{rest}"


def describe_repeats(texts: LabelledTexts) -> str:
    """A line on texts that occur more than once, and on those of them with different labels."""
    repeats = count_repeats(texts)
    if not repeats["texts"]:
        return "no text occurs twice"
    return (
        f"{repeats['texts']:,} texts of {texts.table.source} occur more than once, in "
        f"{repeats['rows']:,} rows; "
        f"{repeats['contradictions'] or 'none'} of them with different labels"
    )


def count_repeats(*sides: LabelledTexts) -> dict[str, int]:
    """Texts that occur more than once, the rows that they have, and how many of these texts have
    different labels."""
    hashes = np.concatenate([side.hashes for side in sides])
    _, number, rows = np.unique(hashes, return_inverse=True, return_counts=True)
    labels = np.unique([number, np.concatenate([side.labels for side in sides])], axis=1)
    return {
        "texts": int((rows > 1).sum()),
        "rows": int(rows[rows > 1].sum()),
        "contradictions": int((np.bincount(labels[0]) > 1).sum()),
    }


def describe_cut(train: Dataset, validation: Dataset, max_length: int, pairs: bool) -> str:
    """A line on texts that are longer than `max_length` tokens; a warning if a quarter are."""
    cut = np.concatenate([column(side, "cut").to_numpy() for side in (train, validation)])
    line = f"{cut.mean():.1%} of the texts are cut at {max_length} tokens"
    if cut.mean() < 0.25:
        return line
    if pairs:
        return f"warning: {line}; a larger --max_length keeps more, if the model reads that much"
    return (
        f"warning: {line}; --truncation head_tail keeps the end of a text, too, and a larger "
        "--max_length more of it, if the model reads that much"
    )


def describe_unknown(unknown: np.ndarray, lengths: np.ndarray, which: str) -> list[str]:
    """A line on tokens that stand for words that the tokenizer does not know, if there are any; a
    warning for a twentieth of all. Args: (texts,) each; words for which texts these are."""
    share = unknown.sum() / max(1, lengths.sum())
    if not share:
        return []
    texts = (unknown > 0).sum()
    line = (
        f"{share:.1%} of the tokens of {which} are unknown to the tokenizer, in "
        f"{texts:,} {'text' if texts == 1 else 'texts'}"
    )
    if share < 0.05:
        return [line]
    return [f"warning: {line}: choose a --model that knows their language and script"]


def describe_largest(validation: Dataset, names: list[str]) -> str:
    """A line on the accuracy of always answering the same."""
    number, share = largest_class(column(validation, "labels").to_numpy())
    return f"{names[number]!r} for every text: right for {share:.1%} of the validation texts"


def largest_class(labels: np.ndarray) -> tuple[int, float]:
    """(Its number, its share.)"""
    counts = np.bincount(labels)
    return int(counts.argmax()), counts.max() / len(labels)


def describe_draw(
    texts: LabelledTexts, validation: LabelledTexts, before: np.ndarray, seed: int
) -> list[str]:
    """Lines on validation texts that were drawn from others. `before`: hashes of those that the
    --model was validated on."""
    kept = int(np.isin(validation.hashes, before).sum())
    line = (
        f"validating on {len(validation):,} of the {len(texts):,} texts of {texts.table.source}, "
        f"drawn by their content (--validation_seed {seed})"
        + f"; {kept:,} of them because --model kept them out of its training"
        * bool(kept)
    )
    why = "to validate on: it has only one, or --model was trained on all of them"
    return [line, *describe_absent(texts, validation, why)]


def describe_absent(whole: LabelledTexts, part: LabelledTexts, why: str) -> list[str]:
    """A line on the classes of `whole` that `part` has no text of."""
    absent = np.setdiff1d(whole.labels, part.labels)
    names = ", ".join(repr(whole.names[number]) for number in absent[:20])
    return [f"no text of {names} {why}"] if len(absent) else []


def describe_overlap(train: LabelledTexts, validation: LabelledTexts, before: np.ndarray) -> str:
    """A line on validation texts of their own. Raises `UserError` if half are trained on, now or
    `before`: hashes of those that the --model was trained on."""
    shared = int(np.isin(validation.hashes, np.union1d(train.hashes, before)).sum())
    if shared >= len(validation) / 2:
        earlier = " now, or that --model was trained on" if len(before) else ""
        raise UserError(
            f"{validation.table.given}: {shared:,} of the {len(validation):,} texts to validate on "
            f"are among those to train on{earlier}; give other texts"
        )
    also = f", of which {shared:,} are trained on, too" if shared else ""
    return f"validating on {len(validation):,} texts of {validation.table.source}{also}"

"""The texts that a model was trained and validated on, found again, and looked for among others.

In: a classifier (eval.Classifier), which says what it was trained on; other texts. Out: labelled
texts; how many are known to it. Independent of: tokens, models, metrics.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from config import Config
from runtime.flags import UserError
from runtime.seen import Seen
from runtime.splits import read_training, read_validation
from runtime.tables import LabelledTexts, label_rows


@dataclasses.dataclass(frozen=True)
class Split:
    """What is evaluated."""

    texts: LabelledTexts
    settings: dict  # which texts these are, for the report
    seen: dict[str, int]  # how many of them the model was trained and validated on
    notes: tuple[str, ...]  # lines for the user


def training_texts(classifier, hashes: np.ndarray) -> LabelledTexts:
    """Those of the data set of its training whose hashes these are, by the names of the model's
    classes. Raises `UserError` if they cannot be read any more."""
    config = training_config(classifier)
    columns = config.text_column, config.label_column
    texts = label_rows(read_training(config), *columns, classifier.names, drop_invalid=True)
    return texts.select(np.flatnonzero(np.isin(texts.hashes, hashes)))


def training_config(classifier) -> Config:
    names = {field.name for field in dataclasses.fields(Config)}
    if not classifier.trained.get("dataset"):
        raise UserError(f"{classifier.folder} does not say what it was trained on; give --dataset")
    return Config(**{name: of for name, of in classifier.trained.items() if name in names})


def load_validation(classifier, known: Seen) -> Split:
    """The texts that chose the step of best/: those of the same data whose hashes it holds."""
    if not len(known.validation):
        raise UserError(
            f"--split validation: {classifier.folder} does not hold what it was validated on; give "
            "the best/ that train.py wrote"
        )
    config = training_config(classifier)
    own = read_validation(config)
    table = read_training(config) if own is None else own
    columns = config.text_column, config.label_column
    texts = label_rows(table, *columns, classifier.names, drop_invalid=True)
    texts = texts.select(np.flatnonzero(np.isin(texts.hashes, known.validation)))
    if not len(texts):
        raise UserError(
            f"--split validation: none of the texts of {table.source} is among those that chose "
            "the step; restore them"
        )
    then = json.loads((classifier.folder / "validation.json").read_text(encoding="utf-8"))
    notes = (f"{len(texts):,} validation texts of {table.source}, which chose the step",)
    if len(texts) != then["examples"]:
        notes += (f"warning: there were {then['examples']:,} then: the data have changed since",)
    settings = {"dataset": config.dataset, "split": "validation"}
    return Split(texts, settings, {"training": 0, "validation": len(texts)}, notes)


def count_seen(texts: LabelledTexts, known: Seen, given: str) -> dict[str, int]:
    """How many of the texts a model was trained and validated on. Raises `UserError` for half."""
    # Texts are compared, not paths: a file may have been copied. A few are usual (52 of IMDb's).
    trained = np.isin(texts.hashes, known.training)
    validated = np.isin(texts.hashes, known.validation)
    either = (trained | validated).sum()
    if either >= len(texts) / 2:
        raise UserError(
            f"{given}: {either:,} of the {len(texts):,} texts are among those that the model was "
            "trained or validated on; give --dataset TEST_FILE, or another split (--split "
            "validation evaluates those that chose the step)"
        )
    return {"training": int(trained.sum()), "validation": int(validated.sum())}


def describe_seen(known: Seen, seen: dict[str, int], texts: LabelledTexts, folder: Path) -> str:
    if why := known.why_unknown(texts.text_columns):
        return f"whether {folder} was trained on these texts is not known: {why}"
    words = "{training:,} of these texts are among those trained on, {validation:,} validated on"
    return words.format(**seen)

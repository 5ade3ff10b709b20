"""The texts that a model was trained and validated on, found again, and looked for among others.

In: a classifier (eval.Classifier), which says what it was trained on; other texts. Out: labelled
texts; how many are known to it. Independent of: tokens, models, metrics.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from config import Config
from runtime.card import VALIDATED
from runtime.flags import UserError
from runtime.seen import Seen, read_seen
from runtime.splits import read_training, read_validation
from runtime.tables import LabelledTexts, Table, label_rows


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
    return texts_of(read_training(config), config, classifier.names, hashes)


def texts_of(table: Table, config: Config, names: list[str], hashes: np.ndarray) -> LabelledTexts:
    columns = config.text_column, config.label_column
    texts = label_rows(table, *columns, names, drop_invalid=True)
    return texts.select(np.flatnonzero(np.isin(texts.hashes, hashes)))


def own_training(folder: Path) -> np.ndarray:
    """Hashes of the texts of its own training, without those of the models that it started from;
    of all, if train.py was an older one that did not keep how many there were."""
    file = folder / VALIDATED
    about = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return read_seen(folder).training[: about.get("training_examples")]


def training_config(classifier) -> Config:
    names = {field.name for field in dataclasses.fields(Config)}
    if not classifier.trained.get("dataset"):
        raise UserError(f"{classifier.folder} does not say what it was trained on")
    return Config(**{name: of for name, of in classifier.trained.items() if name in names})


def load_validation(classifier, known: Seen) -> Split:
    """The texts that chose the step of best/: those of the same data whose hashes it holds. Those
    that chose the step of a model that it started from are not among them."""
    if not len(known.validation):
        raise UserError(
            f"--split validation: {classifier.folder} does not hold what it was validated on; give "
            "the best/ that train.py wrote"
        )
    config = training_config(classifier)
    count = json.loads((classifier.folder / VALIDATED).read_text(encoding="utf-8"))["examples"]
    own = read_validation(config)
    table = read_training(config) if own is None else own
    texts = texts_of(table, config, classifier.names, known.validation[:count])
    if not len(texts):
        raise UserError(
            f"--split validation: none of the texts of {table.source} is among those that chose "
            "the step; restore them"
        )
    notes = (
        f"{len(texts):,} validation texts of {table.source}, which chose the step: expect a little "
        "less on others",
    )
    if len(texts) != count:
        notes += (f"warning: there were {count:,} then: the data have changed since",)
    settings = {"dataset": config.validation_dataset or config.dataset, "split": "validation"}
    return Split(texts, settings, count_seen(texts, known, "", "validation"), notes)


def count_seen(
    texts: LabelledTexts, known: Seen, given: str, split: str = "test"
) -> dict[str, int]:
    """How many of the texts a model was trained and validated on.

    Raises `UserError` for half; of those of the split "validation", for half trained on: that its
    step was chosen by them, too, is fair.
    """
    # Texts are compared, not paths: a file may have been copied. A few are usual (52 of IMDb's).
    trained = np.isin(texts.hashes, known.training)
    validated = np.isin(texts.hashes, known.validation)
    either = (trained | validated if split == "test" else trained).sum()
    if either >= len(texts) / 2:
        on, else_do = "trained", ""
        if split == "test":
            on = "trained or validated"
            else_do = " (--split validation evaluates those that chose the step)"
        raise UserError(
            f"{given}: {either:,} of the {len(texts):,} texts are among those that the model was "
            f"{on} on; give --dataset TEST_FILE, or another split{else_do}"
        )
    return {"training": int(trained.sum()), "validation": int(validated.sum())}


def describe_seen(known: Seen, seen: dict[str, int], texts: LabelledTexts, folder: Path) -> str:
    if why := known.why_unknown(texts.text_columns):
        return f"whether {folder} was trained on these texts is not known: {why}"
    words = "{training:,} of these texts are among those trained on, {validation:,} validated on"
    return words.format(**seen)

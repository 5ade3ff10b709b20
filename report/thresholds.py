"""Decisions by probability: how many texts are above a threshold, how many of these are right, and
the one that is chosen.

In: the validation in best/; what a user chose. Out: a table, `threshold.json` in best/. Independent
of: how texts are read and predicted. Probabilities are the model's own, not divided by a
temperature.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from report.files import check_writable
from report.predictions import Predicted
from report.terminal import show_thresholds
from runtime.card import checksum
from runtime.checkpoint import VALIDATION, read_training_settings
from runtime.flags import UserError
from runtime.heads import read_class_names
from runtime.hub import find_checkpoint, load_pretrained, weight_files
from runtime.intervals import wilson

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
THRESHOLDS += (0.97, 0.98, 0.99)
STORED = "threshold.json"
NOTE = """
A threshold of {:g} was chosen on the validation texts (`threshold.json` has the evidence): eval.py
with `--min_probability stored` leaves a text of a lower probability without a label. A pipeline
does not.
"""  # for the card on the Hub


def read_validation_of(folder: Path) -> Predicted | None:
    """The validation that chose the step of a model, text by text; None if train.py did not write
    it."""
    if not (folder / VALIDATION).is_file():
        return None
    with np.load(folder / VALIDATION) as kept:
        return Predicted(
            **{field.name: kept[field.name] for field in dataclasses.fields(Predicted)}
        )


def coverage(validation: Predicted, threshold: float) -> dict:
    """Of the texts whose predicted class has that probability or more: how many there are, and what
    share is right, in all and of those predicted as each class."""
    sure = validation.probabilities().max(1) >= threshold
    right, texts = validation.right[sure], int(sure.sum())
    of_class = [right[validation.classes[sure] == c] for c in range(validation.logits.shape[1])]
    accuracy = float(right.mean()) if texts else None
    return {
        "min_probability": threshold,
        "coverage": texts / len(sure),
        "texts": texts,
        "accuracy": accuracy,
        "interval_95": wilson(accuracy, texts) if texts else None,
        "precision": [float(of.mean()) if len(of) else None for of in of_class],
        "texts_of_class": [len(of) for of in of_class],
    }


def coverage_table(validation: Predicted | None) -> list[dict]:
    """`coverage` at each of `THRESHOLDS` that can leave a text out, and at 0."""
    if validation is None:
        return []
    lowest = 1 / validation.logits.shape[1]
    return [coverage(validation, value) for value in THRESHOLDS if not value or value > lowest]


def store_threshold(
    folder: Path, threshold: float, validation: Predicted, names: list[str], weights: str
) -> None:
    """In best/, with its evidence and the checksum of the weights that it was chosen for.

    Raises `UserError` if no validation text is above it: there is no evidence.
    """
    found = coverage(validation, threshold)
    if not found["texts"]:
        raise UserError(
            f"--store_threshold {threshold}: no validation text has such a probability, of which "
            f"the highest is {validation.probabilities().max():.4f}; give a lower one"
        )
    for of_class in ("precision", "texts_of_class"):
        found[of_class] = dict(zip(names, found[of_class], strict=True))
    found |= {"validation_texts": len(validation.labels), "weights": weights}
    (folder / STORED).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read_threshold(folder: Path, weights: str) -> float | None:
    """The one that is stored; None if there is none. Raises `UserError` for one of other weights,
    such as those of a training before."""
    path = folder / STORED
    if not path.is_file():
        return None
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        threshold, of = float(found["min_probability"]), found["weights"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: is damaged ({error!r}); write it again, by --thresholds --store_threshold"
        ) from None
    if of != weights:
        raise UserError(
            f"{path}: is of other weights than those there now; choose and store the threshold "
            "again, or remove the file"
        )
    return threshold


def stored_threshold(folder: Path, weights: str) -> float | None:
    """`read_threshold`, but None for one that cannot be applied: nobody asked to."""
    with contextlib.suppress(UserError):
        return read_threshold(folder, weights)


# ---------------------------------------------------------------- what is asked for


def choose_threshold(config) -> None:
    """--thresholds: from the validation that best/ keeps, without the model."""
    folder = find_checkpoint(config.ckpt)
    read_training_settings(folder)  # raises for a damaged folder
    validation = read_validation_of(folder)
    if validation is None:
        raise UserError(
            f"--thresholds: {folder} does not hold its validation; give the best/ that train.py "
            "wrote"
        )
    names = read_class_names(load_pretrained(AutoConfig, str(folder)), f"--ckpt {config.ckpt}")
    show_thresholds(coverage_table(validation), names, len(validation.labels))
    if config.store_threshold is not None:
        if not os.path.exists(config.ckpt):
            raise UserError(
                f"--store_threshold {config.store_threshold}: --ckpt {config.ckpt} is on the Hub, "
                "whose cache is not for files of ours; give a folder"
            )
        check_writable(f"--store_threshold {config.store_threshold}:", folder / STORED)
        weights = checksum(weight_files(folder))
        before = stored_threshold(folder, weights)
        store_threshold(folder, config.store_threshold, validation, names, weights)
        place = "" if before is None else f", in the place of {before:g}"
        print(
            f"{config.store_threshold:g} is stored in {folder / STORED}{place}; --min_probability "
            "stored applies it"
        )


def read_min_probability(config, classifier) -> float:
    if config.min_probability not in (None, "stored"):
        return float(config.min_probability)
    if config.min_probability is None:
        if (classifier.folder / STORED).is_file() and not classifier.in_windows:
            classifier.accelerator.print(
                f"{classifier.folder / STORED} is not applied; --min_probability stored applies it"
            )
        return 0.0
    threshold = read_threshold(classifier.folder, classifier.checksum)
    if threshold is None:
        raise UserError(
            f"--min_probability stored: {classifier.folder} has none; give a number, or store one "
            "with --thresholds --store_threshold"
        )
    return threshold

"""What a round of self-training learns from, in a folder that is written whole or not at all.

In: the flags of recipes/self_train.py; teachers. Out: train.parquet and validation.parquet, for
train.py, and about.json: what decided them. Independent of: how a model is trained.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState

from config import EvalConfig
from data import choose_texts
from eval import Classifier, open_classifier
from recipes.pseudo_labels import (
    choose_balanced,
    find_unsure,
    label_texts,
    read_unlabelled,
    write_data,
)
from runtime.draw import sample
from runtime.flags import UserError, require_unchanged
from runtime.folders import newest_whole, write_folder
from runtime.processes import on_main
from runtime.seen import read_seen
from runtime.tables import LabelledTexts, hash_texts

DECIDE = ("min_probability", "max_unlabelled_samples")


@dataclasses.dataclass(frozen=True)
class Given:
    """The texts of a self-training."""

    labelled: LabelledTexts
    validation: LabelledTexts
    unlabelled: list[tuple[str, ...]]


def read_texts(config) -> Given:
    none = {"max_train_samples": None, "max_validation_samples": None}
    train, held_out, _ = choose_texts(dataclasses.replace(config, **none))
    labelled = sample(train, config.max_train_samples, config.validation_seed)
    validation = sample(held_out, config.max_validation_samples, config.validation_seed)
    say = print if os.environ.get("RANK", "0") == "0" else (lambda _: None)
    # None that is held out is learnt from, also if only a sample of them validates.
    chunks = read_unlabelled(config, [labelled.hashes, held_out.hashes], say)
    return Given(labelled, validation, list(itertools.chain.from_iterable(chunks)))


def make_data(data: Path, config, teachers, given: Given) -> None:
    """The texts of a round in the folder `data`, unless they are there.

    Raises `UserError` if those were made of others, or by other teachers.
    """
    AcceleratorState._reset_state()
    classifiers, accelerator = [], None
    for ckpt in teachers:
        asked = EvalConfig(ckpt=ckpt, num_threads=config.num_threads)
        classifiers.append(open_classifier(asked, flag="--teacher", accelerator=accelerator))
        accelerator = classifiers[0].accelerator
    about = describe(config, classifiers, given)
    if on_main(lambda: is_made(data, about)):
        return
    labelled, names = given.labelled, given.labelled.names
    for each in classifiers:
        check_teacher(each, given)
    shares = label_texts(given.unlabelled, classifiers, names)
    counts = np.bincount(labelled.labels, minlength=len(names))
    rows = choose_balanced(shares, counts, config.min_probability, config.max_unlabelled_samples)
    if not len(rows):
        raise UserError(
            f"--min_probability {config.min_probability}: {find_unsure(shares, counts, names)}; "
            "give less, or a better teacher"
        )
    added = [given.unlabelled[row] for row in rows]

    def fill(folder: Path) -> None:
        write_data(folder, config, labelled, given.validation, added, shares[rows])
        (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    def write() -> None:
        data.parent.mkdir(parents=True, exist_ok=True)
        write_folder(data, fill)

    on_main(write)
    accelerator.print(
        f"{data}: {len(rows):,} of the texts without labels, and {len(labelled):,} with labels"
    )


def check_teacher(classifier: Classifier, given: Given) -> None:
    """Raises `UserError` for one of other classes; says if it knows texts to validate on."""
    if sorted(classifier.names) != sorted(given.labelled.names):
        raise UserError(f"--teacher {classifier.name}: has other classes than --dataset; give one")
    known = np.isin(given.validation.hashes, read_seen(classifier.folder).training).sum()
    if known:
        classifier.accelerator.print(
            f"warning: --teacher {classifier.name} was trained on {known:,} of the "
            f"{len(given.validation):,} texts to validate on, which then look too good"
        )


def describe(config, classifiers: list[Classifier], given: Given) -> dict:
    """What decides the texts of a round."""
    parts = {
        "labelled texts": given.labelled.hashes.tobytes() + given.labelled.labels.tobytes(),
        "validation texts": given.validation.hashes.tobytes() + given.validation.labels.tobytes(),
        "unlabelled texts": hash_texts(given.unlabelled).tobytes(),
    }
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    teachers = {"teachers": [classifier.checksum for classifier in classifiers]}
    return {name: getattr(config, name) for name in DECIDE} | digests | teachers


def is_made(data: Path, about: dict) -> bool:
    if not newest_whole(data):
        return False
    there = json.loads((data / "about.json").read_text(encoding="utf-8"))
    require_unchanged(there, about, DECIDE, str(data))
    return True

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
from runtime.tables import LabelledTexts, split_columns

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


def make_data(data: Path, config, teachers, given: Given, about: dict) -> None:
    """The texts of a round in the folder `data`, unless they are there. `about`: of `describe`.

    Raises `UserError` if those were made of others, or by other teachers.
    """
    AcceleratorState._reset_state()
    classifiers, accelerator = [], None
    for ckpt in teachers:
        asked = EvalConfig(ckpt=ckpt, num_threads=config.num_threads)
        classifiers.append(open_classifier(asked, flag="--teacher", accelerator=accelerator))
        accelerator = classifiers[0].accelerator
    about = about | {"teachers": [*map(identify, classifiers)]}
    if on_main(lambda: is_made(data, about)):
        return
    labelled, names = given.labelled, given.labelled.names
    for each in classifiers:
        check_teacher(each, given)
    shares = label_texts(given.unlabelled, classifiers, names)
    counts = np.bincount(labelled.labels, minlength=len(names))
    rows = choose_balanced(shares, counts, config.min_probability, config.max_unlabelled_samples)
    if not len(rows):
        begun = any(data.parent.parent.glob("round_*/data"))
        raise UserError(
            f"--min_probability {config.min_probability}: {find_unsure(shares, counts, names)}; "
            f"give less{' in another --output_dir' * begun}, or a better teacher"
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
    """Raises `UserError` for one of other classes, or of pairs where these are single texts; says
    if it knows texts to validate on."""
    flag, own = f"--teacher {classifier.name}", classifier.trained.get("text_column")
    if sorted(classifier.names) != sorted(given.labelled.names):
        raise UserError(f"{flag}: has other classes than --dataset; give one with the same")
    if own and len(split_columns(own)) != len(given.labelled.text_columns):
        raise UserError(f"{flag}: was trained on --text_column {own}; give one of such texts")
    known = np.isin(given.validation.hashes, read_seen(classifier.folder).training).sum()
    if known:
        classifier.accelerator.print(
            f"warning: {flag} was trained on {known:,} of the "
            f"{len(given.validation):,} texts to validate on, which then look too good"
        )


def require_begun_alike(output: Path, about: dict) -> None:
    """Raises `UserError` if a round in there was made of other texts, or with other flags: before a
    model is trained for it."""
    for path in sorted(output.glob("round_*/data/about.json")):
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # damaged, which `is_made` says
            continue
        require_unchanged(there, about, DECIDE, str(path.parent))


def describe(config, given: Given) -> dict:
    """What decides the texts of all rounds."""
    parts = {"labelled texts": given.labelled, "validation texts": given.validation}
    digests = {name: digest(side.chunks(), side) for name, side in parts.items()}
    digests["unlabelled texts"] = digest([given.unlabelled])
    about = {name: getattr(config, name) for name in DECIDE} | digests
    return about | {"teachers at the start": bool(config.teacher)}


def digest(chunks, labelled: LabelledTexts | None = None) -> str:
    """SHA-256 of texts, with all their white space, and of their classes by name. Not `content`,
    which is of a whole table: rows that are not learnt from may change."""
    whole = hashlib.sha256()
    for text in itertools.chain.from_iterable(chunks):
        whole.update(repr(text).encode())
    if labelled:
        whole.update(repr(labelled.names).encode() + labelled.labels.tobytes())
    return whole.hexdigest()


def identify(classifier: Classifier) -> list:
    """What decides its answers."""
    return [classifier.checksum, classifier.truncation, classifier.tokenizer.model_max_length]


def is_made(data: Path, about: dict) -> bool:
    if not newest_whole(data, remedy="delete that folder: the same command makes it again"):
        return False
    there = json.loads((data / "about.json").read_text(encoding="utf-8"))
    require_unchanged(there, about, DECIDE, str(data))
    return True

"""The models that eval.py compares with: whether that is fair, and what comes of it.

In: classifiers (eval.Classifier), by the names of their columns in --predictions: seeds_1 is on the
side of --ckpt, compare_1 on the other; labelled texts. Out: both sides for the report, or a
`UserError`. Independent of: how a model is opened, statistics.
"""

import dataclasses

import numpy as np

from config import Config
from report.comparison import compare_sides
from report.predictions import Predicted
from report.texts import count_seen, describe_seen
from runtime.flags import UserError
from runtime.seen import read_seen
from runtime.tables import LabelledTexts, list_names, split_columns

SIDES = {"seeds": "ours", "compare": "other"}  # by the flag


def examine_rivals(
    classifier, also_in: dict[str, int], rivals: dict, texts: LabelledTexts, split: str
) -> dict[str, list[dict]]:
    """The models of both sides, for the report; {} without rivals. Says what each has seen.

    Raises `UserError` for one of other classes or columns, for one that was trained on half of
    `texts`, and for one that is twice on a side: it would count twice in the mean.

    Args:
        also_in: how many of `texts` `classifier` was trained and validated on.
    """
    if not rivals:
        return {}
    sides = {"ours": [describe(classifier, also_in)], "other": []}
    for column, rival in rivals.items():
        flag = column.partition("_")[0]
        side, given = sides[SIDES[flag]], f"--{flag} {rival.name}"
        require_same_classes(rival, classifier, given)
        require_same_columns(rival, texts, given)
        known = read_seen(rival.folder)
        seen = count_seen(texts, known, given, split)
        about = describe(rival, seen)
        twice = [other["ckpt"] for other in side if other["weights"] == about["weights"]]
        if twice:
            raise UserError(f"{given}: has the weights of {twice[0]}; leave one of them out")
        side.append(about)
        rival.accelerator.print(f"{given}: {describe_seen(known, seen, texts, rival.folder)}")
        if others := other_settings(rival.trained, classifier.trained):
            rival.accelerator.print(f"{given}: trained with {', '.join(others)}")
    return sides


def describe(classifier, also_in: dict[str, int]) -> dict:
    return {"ckpt": classifier.name, "weights": classifier.checksum, "also_in": also_in}


def other_settings(trained: dict, of_ckpt: dict) -> list[str]:
    """What may explain a difference besides chance, in words."""
    return [
        f"--{field.name} {trained[field.name]} (--ckpt: {of_ckpt[field.name]})"
        for field in dataclasses.fields(Config)
        if field.name in trained.keys() & of_ckpt.keys() - {"output_dir"}
        and trained[field.name] != of_ckpt[field.name]
    ]


def require_same_classes(rival, classifier, given: str) -> None:
    if sorted(rival.names) != sorted(classifier.names):
        raise UserError(
            f"{given}: has the classes {list_names(rival.names)}, and --ckpt "
            f"{list_names(classifier.names)}; give one with the same classes"
        )


def require_same_columns(rival, texts: LabelledTexts, given: str) -> None:
    """Raises `UserError` for a model that was trained on others of the columns that are there: on
    these, a model of titles would look worse than it is."""
    own = split_columns(rival.trained.get("text_column", ",".join(texts.text_columns)))
    there = own != texts.text_columns and set(own) <= set(texts.table.columns)
    if there or len(own) != len(texts.text_columns):
        raise UserError(
            f"{given}: was trained on --text_column {','.join(own)}, and these texts are of "
            f"{','.join(texts.text_columns)}; evaluate each alone, with --predictions"
        )


def predict_as(rival, names: list[str], texts: LabelledTexts) -> np.ndarray:
    """(texts,) what it predicts, as the numbers of `names`."""
    own = np.array([names.index(name) for name in rival.names])
    return own[rival.predict_split(texts).classes]


def compare_with(predicted: Predicted, others: dict[str, np.ndarray], models: dict) -> dict:
    """Args: others: the classes that each rival predicts. models: of `examine_rivals`."""
    sides = {"ours": [predicted.classes], "other": []}
    for column, classes in others.items():
        sides[SIDES[column.partition("_")[0]]].append(classes)
    count = predicted.logits.shape[1]
    return {"models": models, **compare_sides(predicted.labels, *sides.values(), count)}

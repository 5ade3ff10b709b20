"""Texts without labels: what teachers say of them, and which of them are learnt from.

In: a data set without labels; classifiers as eval.py opens them. Out: files that train.py reads,
with a probability of each class for these texts. Independent of: rounds, how a model is trained.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from data import what_model_has_seen
from runtime.draw import share_out
from runtime.flags import UserError
from runtime.formats import CHUNK
from runtime.splits import read_table, unused_files
from runtime.tables import LabelledTexts, find_text_columns, hash_texts, text_tuples

PREFIX = "p_"  # of the columns of probabilities, as in eval.py --output

Texts = list[tuple[str, ...]]


def read_unlabelled(config, known: list[np.ndarray], say) -> Iterator[Texts]:
    """The texts of --unlabelled, a thousand at a time: each once, and none that is empty, known
    (by its hash) or in the test split."""
    split = config.unlabelled_split
    table = read_table(config.unlabelled, split, flag="--unlabelled", choices="--unlabelled_split")
    for line in unused_files(config.unlabelled, table):
        say(line)
    columns = find_text_columns(table, config.text_column)
    validated = what_model_has_seen(config).validation  # it chose the step of --model
    known = np.concatenate([*known, validated, hash_test_split(config, say)])
    total = left = 0
    for _, _, chunk in table.chunks(columns):
        texts = text_tuples(chunk, columns)
        hashes = hash_texts(texts)
        _, first = np.unique(hashes, return_index=True)
        new = set(first.tolist()) - set(np.flatnonzero(np.isin(hashes, known)).tolist())
        known = np.concatenate([known, hashes])
        chosen = [texts[row] for row in sorted(new) if any(map(str.strip, texts[row]))]
        total, left = total + len(texts), left + len(chosen)
        if chosen:
            yield chosen
    others = "; the others are empty, there twice, or among those to train, validate or test on"
    say(f"{left:,} of {total:,} texts without labels are used{others * (left < total)}")
    if not left:
        raise UserError(
            f"--unlabelled {config.unlabelled}: holds no text that is new; check its files, "
            "--unlabelled_split"
        )


def hash_test_split(config, say) -> np.ndarray:
    """Of its texts, not of its labels: what is tested on must not be learnt from."""
    source = config.dataset_config_name, config.dataset_revision
    try:
        if Path(config.dataset).is_file():
            raise UserError(f"--dataset {config.dataset} is one file, without a test split")
        table = read_table(config.dataset, config.test_split, *source, choices="--test_split")
        columns = find_text_columns(table, config.text_column)
        hashes = [hash_texts(text_tuples(chunk, columns)) for _, _, chunk in table.chunks(columns)]
    except UserError as error:
        say(
            f"warning: no text of a test split is left out ({error.args[0]}); if you have one, "
            "give --dataset FOLDER with a file of each split"
        )
        return np.array([], "<u8")
    return np.concatenate([np.array([], "<u8"), *hashes])


def label_texts(texts: Texts, classifiers: list, names: list[str]) -> np.ndarray:
    """(texts, classes) the mean of the probabilities that the classifiers give."""
    shares = [np.zeros((0, len(names)))]
    for start in range(0, len(texts), CHUNK):
        chunk, each = texts[start : start + CHUNK], []
        for classifier in classifiers:
            own = classifier.logits(classifier.encode(chunk)).double().softmax(-1).numpy()
            each.append(own[:, [classifier.names.index(name) for name in names]])
        shares.append(np.mean(each, axis=0))
    return np.concatenate(shares)


def choose_balanced(
    shares: np.ndarray, of_labelled: np.ndarray, least: float, most: int | None
) -> np.ndarray:
    """Rows to learn from, ascending: of each class the surest, in the proportions of the labelled
    texts, as many as these allow.

    A model that leans to a class would otherwise teach its successor to lean further.

    Args:
        of_labelled: (classes,) how many labelled texts each has.
        least: the probability of the likeliest class that a text must have.
    """
    labels, top = shares.argmax(1), shares.max(1)
    sure = np.bincount(labels[top >= least], minlength=len(of_labelled))
    there = of_labelled > 0
    total = int(min(sure[there] * of_labelled.sum() // of_labelled[there]))
    quota = np.minimum(share_out(of_labelled, min(total, most or total)), sure)
    surest = np.argsort(-top, kind="stable")
    rows = [surest[labels[surest] == label][:count] for label, count in enumerate(quota)]
    return np.sort(np.concatenate(rows))


def find_unsure(shares: np.ndarray, of_labelled: np.ndarray, names: list[str]) -> str:
    """The class whose surest text is the least sure, in words."""
    labels, top = shares.argmax(1), shares.max(1)
    surest = [max(top[labels == label], default=0.0) for label in range(len(names))]
    worst = min(np.flatnonzero(of_labelled), key=surest.__getitem__)
    if not surest[worst]:
        return f"no unlabelled text is taken for class {names[worst]!r}"
    return f"the surest unlabelled text of class {names[worst]!r} has {surest[worst]:.6g}"


def write_data(folder: Path, config, labelled, validation, texts: Texts, shares) -> None:
    """`folder`/train.parquet, the labelled texts and then the others, and validation.parquet."""
    for name, side in ("train", labelled), ("validation", validation):
        rows = [text for chunk in side.chunks() for text in chunk]
        labels, soft = side.labels, np.full((len(rows), len(side.names)), np.nan)
        if name == "train":
            rows, labels = rows + texts, np.concatenate([labels, shares.argmax(1)])
            soft = np.concatenate([soft, shares])
        make_rows(side, rows, labels, soft, config).to_parquet(str(folder / f"{name}.parquet"))


def make_rows(side: LabelledTexts, texts: Texts, labels, shares, config) -> Dataset:
    """With all classes in the order of `side`, also those of which no text is there."""
    columns = dict(zip(side.text_columns, zip(*texts, strict=True), strict=True))
    kinds = dict.fromkeys(columns, Value("string"))
    columns[config.label_column], kinds[config.label_column] = labels, ClassLabel(names=side.names)
    for name, cells in zip(side.names, shares.T, strict=True):
        columns[f"{PREFIX}{name}"], kinds[f"{PREFIX}{name}"] = cells, Value("float64")
    return Dataset.from_dict(columns, features=Features(kinds))

"""Predictions: for new texts, printed or written beside the columns of the user's file; for a
split, beside the true labels.

In: texts; a classifier (eval.Classifier), which gives logits and class names. Out: lines, files.
Independent of: how logits are computed, which split it is.
"""

import contextlib
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from runtime.flags import UserError
from runtime.formats import (
    DELIMITERS,
    Dialect,
    format_of,
    read_chunks,
    read_columns,
    read_dialect,
    require_single,
    write_chunks,
)
from runtime.splits import read_table
from runtime.tables import LabelledTexts, find_text_columns, split_columns, text_cells, text_tuples

# ---------------------------------------------------------------- new texts


def print_predictions(texts: tuple[str, ...], classifier, threshold: float = 0.0) -> None:
    if len(split_columns(classifier.text_column)) == 2:
        raise UserError(
            f"--text: the model reads pairs of texts ({classifier.text_column}); give --input FILE"
        )
    logits = classifier.logits([(text,) for text in texts])
    for text, row in zip(texts, logits.softmax(-1), strict=True):
        label = classifier.names[row.argmax()] if row.max() >= threshold else NO_LABEL
        classifier.accelerator.print(f"{label}  {row.max():.4f}  {text}")


NO_LABEL = "-"  # printed for a text whose probability is below the threshold


def write_predictions(config, classifier, threshold: float = 0.0) -> None:
    """The file of --input with more columns: `predicted_label`, its `probability`, and
    `p_<class>` for each class; empty for an empty text. The label alone is empty where the
    probability is below `threshold`.

    The file is read twice, first to find its mistakes before the work begins. Only a
    thousand of its rows are in memory at a time.
    """
    table = read_table(config.input, "train", flag="--input")  # "train": a file has one split
    texts_in = find_text_columns(table, config.text_column or classifier.text_column)
    source, output = Path(config.input), Path(config.output)
    columns = read_columns(source)
    added = predicted_columns(classifier.names)
    if taken := set(added) & set(columns):
        raise UserError(f"--input {source}: has a column {min(taken)} already; rename it")
    named = texts_in if format_of(output) in DELIMITERS else columns
    require_single(source, columns, named)  # which only CSV can hold otherwise
    rows = sum(len(read_texts(chunk, texts_in, config.input)) for chunk in read_chunks(source))
    if not rows:
        raise UserError(f"--input {source}: holds no rows; give a file that does")
    main = classifier.accelerator.is_main_process
    empty = unsure = 0
    with (
        write_chunks(output, read_dialect(source)) if main else contextlib.nullcontext() as write,
        tqdm(total=rows, unit=" texts", disable=None if main else True) as bar,
    ):
        for chunk in read_chunks(source):
            texts = read_texts(chunk, texts_in, config.input)
            predicted = predict_texts(texts, classifier, threshold)
            empty += predicted[1].count(None)
            unsure += predicted[0].count(None) - predicted[1].count(None)
            if main:
                write(append_columns(chunk, added, predicted))
            bar.update(len(texts))
    without = f", {empty:,} of them empty, for empty texts" if empty else ""
    below = f"; {unsure:,} without a label, below a probability of {threshold}" if threshold else ""
    classifier.accelerator.print(f"{rows:,} predictions written to {output}{without}{below}")


def predicted_columns(names: list[str]) -> list[str]:
    return ["predicted_label", "probability", *(f"p_{name}" for name in names)]


def append_columns(chunk: pa.Table, names: list[str], columns: list[list]) -> pa.Table:
    """The first of them strings, the others numbers."""
    kinds = itertools.chain([pa.string()], itertools.repeat(pa.float64()))
    for name, values, kind in zip(names, columns, kinds, strict=False):
        chunk = chunk.append_column(name, pa.array(values, kind))
    return chunk


def read_texts(chunk: pa.Table, columns: tuple[str, ...], given: str) -> list[tuple[str, ...]]:
    cells = [text_cells(chunk[name], f"--input {given}: column {name!r}") for name in columns]
    return text_tuples(pa.table(cells, names=columns), columns)


def predict_texts(texts: list[tuple[str, ...]], classifier, threshold: float) -> list[list]:
    """Label, its probability, and that of each class: a list each, None for an empty text."""
    valid = [number for number, text in enumerate(texts) if any(map(str.strip, text))]
    columns = [[None] * len(texts) for _ in range(2 + len(classifier.names))]
    if valid:
        logits = classifier.logits([texts[number] for number in valid])
        shares = logits.double().softmax(-1)
        best = shares.max(-1)
        values = torch.cat([best.values[:, None], shares], dim=1).tolist()
        for number, label, row in zip(valid, best.indices.tolist(), values, strict=True):
            columns[0][number] = classifier.names[label] if row[0] >= threshold else None
            for column, value in zip(columns[1:], row, strict=True):
                column[number] = six_digits(value)
    return columns


def six_digits(value: float) -> float:
    return float(f"{value:.6g}")


# ---------------------------------------------------------------- a split


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A split, text by text."""

    logits: np.ndarray  # (texts, classes) float32
    labels: np.ndarray  # (texts,) the numbers of the true classes
    length: np.ndarray  # (texts,) tokens that the model read
    cut: np.ndarray  # (texts,) bool, whether there were more

    @property
    def classes(self) -> np.ndarray:
        """(texts,) the numbers of the predicted classes."""
        return self.logits.argmax(1)

    @property
    def right(self) -> np.ndarray:
        return self.classes == self.labels

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """(texts, classes)"""
        return torch.as_tensor(self.logits).double().div(temperature).softmax(-1).numpy()


def write_split(
    path: Path, texts: LabelledTexts, predicted: Predicted, others: dict[str, np.ndarray]
) -> None:
    """Each text with its true label, its prediction, and in further columns what others predicted
    (class numbers by the name of the column)."""
    done = 0
    with write_chunks(path, Dialect()) as write:
        for chunk in texts.chunks():
            write(join_columns(chunk, texts, predicted, others, np.arange(done, done + len(chunk))))
            done += len(chunk)


def write_errors(
    path: Path, texts: LabelledTexts, predicted: Predicted, others: dict[str, np.ndarray]
) -> int:
    """The same of the mistakes, the most confident first. Returns their number."""
    rows, wrong = worst_mistakes(texts, predicted)
    with write_chunks(path, Dialect()) as write:
        write(join_columns(wrong, texts, predicted, others, rows))
    return len(rows)


def worst_mistakes(
    texts: LabelledTexts, predicted: Predicted, most: int | None = None
) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """(Rows of the mistakes, their texts), those first in which the model is most sure."""
    confidence = predicted.probabilities().max(1)
    wrong = np.flatnonzero(~predicted.right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    rows = np.sort(worst)
    found = itertools.chain.from_iterable(texts.select(rows).chunks())
    text_of = dict(zip(rows.tolist(), found, strict=True))
    return worst, [text_of[row] for row in worst.tolist()]


def join_columns(
    chunk: list[tuple[str, ...]],
    texts: LabelledTexts,
    predicted: Predicted,
    others: dict[str, np.ndarray],
    rows: np.ndarray,
) -> pa.Table:
    """`chunk`: the texts of `rows` of the split."""
    names = np.array(texts.names, dtype=object)
    shares = predicted.probabilities()[rows]
    columns = dict(zip(texts.text_columns, zip(*chunk, strict=True), strict=False))
    columns = {name: pa.array(cells, pa.string()) for name, cells in columns.items()}
    if not chunk:
        columns = {name: pa.array([], pa.string()) for name in texts.text_columns}
    columns["true_label"] = pa.array(names[predicted.labels[rows]], pa.string())
    values = [names[predicted.classes[rows]], shares.max(1), *shares.T]
    for name, cells in zip(predicted_columns(texts.names), values, strict=True):
        cells = cells if name == "predicted_label" else map(six_digits, cells)
        columns[name] = pa.array(list(cells))
    for name, numbers in others.items():
        columns[name] = pa.array(names[numbers[rows]], pa.string())
    return pa.table(columns)

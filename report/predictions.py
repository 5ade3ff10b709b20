"""Predictions: for new texts, printed or written beside the columns of the user's file; for a
split, beside the true labels.

In: texts; a classifier (eval.Classifier), which gives logits and class names. Out: lines, files.
Independent of: how logits are computed, which split it is.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from runtime.display import printable
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
from runtime.notes import describe_unknown
from runtime.splits import read_table
from runtime.tables import LabelledTexts, find_text_columns, split_columns, text_cells, text_tuples

# ---------------------------------------------------------------- new texts


def print_predictions(texts: tuple[str, ...], classifier, threshold: float = 0.0) -> None:
    if len(split_columns(classifier.text_column)) == 2:
        raise UserError(
            f"--text: the model reads pairs of texts ({classifier.text_column}); give --input FILE"
        )
    texts = [text.encode(errors="replace").decode() for text in texts]  # bytes that are no UTF-8
    ids = classifier.encode([(text,) for text in texts])
    for text, row in zip(texts, classifier.logits(ids).double().softmax(-1), strict=True):
        label = classifier.names[row.argmax()] if row.max() >= threshold else NO_LABEL
        line = f"{label}  {row.max():.4f}  {text}"
        classifier.accelerator.print(" ".join(printable(line).splitlines()))
    counts = np.array(ids["unknown"]), np.array(ids["length"])
    for line in describe_unknown(*counts, "these texts"):
        classifier.accelerator.print(line)


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
    counts = []  # of unknown tokens, and of all
    with (
        write_chunks(output, read_dialect(source)) if main else contextlib.nullcontext() as write,
        tqdm(total=rows, unit=" texts", disable=None if main else True) as bar,
    ):
        for chunk in read_chunks(source):
            texts = read_texts(chunk, texts_in, config.input)
            predicted, ids = predict_texts(texts, classifier, threshold)
            counts.append(np.array([ids["unknown"], ids["length"]], dtype=int))
            empty += predicted[1].count(None)
            unsure += predicted[0].count(None) - predicted[1].count(None)
            if main:
                write(append_columns(chunk, added, predicted))
            bar.update(len(texts))
    without = f", {empty:,} of them empty, for empty texts" if empty else ""
    below = f"; {unsure:,} without a label, below a probability of {threshold}" if threshold else ""
    classifier.accelerator.print(f"{rows:,} predictions written to {output}{without}{below}")
    for line in describe_unknown(*np.concatenate(counts, axis=1), f"the texts of {source.name}"):
        classifier.accelerator.print(line)


def predicted_columns(names: list[str]) -> list[str]:
    return ["predicted_label", "probability", *(f"p_{name}" for name in names)]


def append_columns(chunk: pa.Table, names: list[str], columns: list) -> pa.Table:
    """Probabilities as numbers, all others as text."""
    for name, values in zip(names, columns, strict=True):
        kind = pa.float64() if name == "probability" or name.startswith("p_") else pa.string()
        chunk = chunk.append_column(name, pa.array(values, kind))
    return chunk


def read_texts(chunk: pa.Table, columns: tuple[str, ...], given: str) -> list[tuple[str, ...]]:
    cells = [text_cells(chunk[name], f"--input {given}: column {name!r}") for name in columns]
    return text_tuples(pa.table(cells, names=columns), columns)


def predict_texts(
    texts: list[tuple[str, ...]], classifier, threshold: float
) -> tuple[list[list], dict[str, list]]:
    """(Label, its probability, and that of each class: a list each, None for an empty text; the
    token ids of the others, of data.encode.)"""
    valid = [number for number, text in enumerate(texts) if any(map(str.strip, text))]
    columns = [[None] * len(texts) for _ in range(2 + len(classifier.names))]
    ids = {"unknown": [], "length": []}
    if valid:
        ids = classifier.encode([texts[number] for number in valid])
        shares = classifier.logits(ids).double().softmax(-1)
        best = shares.max(-1)
        values = torch.cat([best.values[:, None], shares], dim=1).tolist()
        for number, label, row in zip(valid, best.indices.tolist(), values, strict=True):
            columns[0][number] = classifier.names[label] if row[0] >= threshold else None
            for column, value in zip(columns[1:], row, strict=True):
                column[number] = six_digits(value)
    return columns, ids


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

    def select(self, which) -> "Predicted":
        return Predicted(**{name: of[which] for name, of in vars(self).items()})


def require_new_columns(texts: LabelledTexts, others: Iterable[str]) -> None:
    """Raises `UserError` if a file of predictions would have two columns of one name.

    Args: others: the names of columns for what other models predict.
    """
    added = {"true_label", *predicted_columns(texts.names), *others}
    for name, part in texts.table.parts.items():
        columns = read_columns(part) if isinstance(part, Path) else part.column_names
        twice = sorted(column for column in set(columns) if columns.count(column) > 1)
        if twice or added & set(columns):
            raise UserError(
                f"--predictions, --errors: {name} has a column "
                f"{(twice or sorted(added & set(columns)))[0]!r} "
                f"{'twice' if twice else 'already'}; rename it"
            )


def write_split(
    path: Path, texts: LabelledTexts, predicted: Predicted, others: dict[str, np.ndarray]
) -> None:
    """Each text, with all columns of its table, its true label and its prediction, and in further
    columns what others predicted (class numbers by the name of the column)."""
    done = 0
    with write_chunks(path, Dialect()) as write:
        for chunk in read_columns_of(texts, texts.table.common_columns):
            rows = slice(done, done + len(chunk))
            write(join_columns(chunk, texts.names, predicted, others, rows))
            done += len(chunk)


def write_errors(
    path: Path, texts: LabelledTexts, predicted: Predicted, others: dict[str, np.ndarray]
) -> int:
    """The same of the mistakes, the most confident first. Returns their number."""
    worst = find_mistakes(predicted)
    wrong = pick_rows(texts, worst, texts.table.common_columns)
    with write_chunks(path, Dialect()) as write:
        write(join_columns(wrong, texts.names, predicted, others, worst))
    return len(worst)


def find_mistakes(predicted: Predicted) -> np.ndarray:
    """Their rows, those first in which the model is most sure."""
    confidence = predicted.probabilities().max(1)
    wrong = np.flatnonzero(~predicted.right)
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


def write_texts(config, texts: LabelledTexts, predicted: Predicted, others: dict) -> None:
    """The files of --predictions and --errors."""
    if config.predictions:
        write_split(Path(config.predictions), texts, predicted, others)
        print(f"{len(texts):,} predictions written to {config.predictions}")
    if config.errors:
        count = write_errors(Path(config.errors), texts, predicted, others)
        print(
            f"{count:,} mistakes written to {config.errors}, the most confident first; these are "
            "also where labels are wrong"
        )


def read_columns_of(texts: LabelledTexts, columns: Iterable[str]) -> Iterator[pa.Table]:
    """In the order of `columns`; text columns as text, others as they are stored."""
    columns = list(columns)
    others = [name for name in columns if name not in texts.text_columns]
    return (chunk.select(columns) for chunk in texts.tables(others))


def pick_rows(texts: LabelledTexts, rows: np.ndarray, columns: Iterable[str]) -> pa.Table:
    """`read_columns_of` some rows, in the order of `rows`."""
    ascending = np.sort(rows)
    found = [*read_columns_of(texts.select(ascending), columns)]
    found = found or [next(read_columns_of(texts, columns)).slice(0, 0)]
    return pa.concat_tables(found).take(np.searchsorted(ascending, rows))


def join_columns(
    chunk: pa.Table,
    names: list[str],
    predicted: Predicted,
    others: dict[str, np.ndarray],
    rows: slice | np.ndarray,
) -> pa.Table:
    """`chunk` holds `rows` of the split."""
    named, of = np.array(names, dtype=object), predicted.select(rows)
    shares = of.probabilities()
    columns = {"true_label": named[of.labels], "predicted_label": named[of.classes]}
    numbers = [shares.max(1), *shares.T]
    columns |= zip(predicted_columns(names)[1:], (map(six_digits, n) for n in numbers), strict=True)
    columns |= {name: named[said[rows]] for name, said in others.items()}
    return append_columns(chunk, [*columns], [list(cells) for cells in columns.values()])

"""Predictions for new texts: printed, or written beside the columns of the user's file.

In: texts; a classifier (eval.Classifier), which gives logits and class names. Out: lines, a file.
Independent of: how logits are computed, test splits.
"""

import contextlib
import itertools
from pathlib import Path

import pyarrow as pa
import torch
from tqdm import tqdm

from runtime.flags import UserError
from runtime.formats import (
    DELIMITERS,
    format_of,
    read_chunks,
    read_columns,
    read_dialect,
    require_single,
    write_chunks,
)
from runtime.splits import read_table
from runtime.tables import find_text_columns, split_columns, text_cells, text_tuples


def print_predictions(texts: tuple[str, ...], classifier) -> None:
    if len(split_columns(classifier.text_column)) == 2:
        raise UserError(
            f"--text: the model reads pairs of texts ({classifier.text_column}); give --input FILE"
        )
    logits = classifier.logits([(text,) for text in texts])
    for text, row in zip(texts, logits.softmax(-1), strict=True):
        label = classifier.names[row.argmax()]
        classifier.accelerator.print(f"{label}  {row.max():.4f}  {text}")


def write_predictions(config, classifier) -> None:
    """The file of --input with more columns: `predicted_label`, its `probability`, and
    `p_<class>` for each class; empty for an empty text.

    The file is read twice, first to find its mistakes before the work begins. Only a
    thousand of its rows are in memory at a time.
    """
    table = read_table(config.input, "train", flag="--input")  # "train": a file has one split
    texts_in = find_text_columns(table, config.text_column or classifier.text_column)
    source, output = Path(config.input), Path(config.output)
    columns = read_columns(source)
    added = ["predicted_label", "probability", *(f"p_{name}" for name in classifier.names)]
    if taken := set(added) & set(columns):
        raise UserError(f"--input {source}: has a column {min(taken)} already; rename it")
    named = texts_in if format_of(output) in DELIMITERS else columns
    require_single(source, columns, named)  # which only CSV can hold otherwise
    rows = sum(len(read_texts(chunk, texts_in, config.input)) for chunk in read_chunks(source))
    if not rows:
        raise UserError(f"--input {source}: holds no rows; give a file that does")
    main = classifier.accelerator.is_main_process
    empty = 0
    with (
        write_chunks(output, read_dialect(source)) if main else contextlib.nullcontext() as write,
        tqdm(total=rows, unit=" texts", disable=None if main else True) as bar,
    ):
        for chunk in read_chunks(source):
            texts = read_texts(chunk, texts_in, config.input)
            predicted = predict_texts(texts, classifier)
            empty += predicted[0].count(None)
            if main:
                write(append_columns(chunk, added, predicted))
            bar.update(len(texts))
    without = f", {empty:,} of them empty, for empty texts" if empty else ""
    classifier.accelerator.print(f"{rows:,} predictions written to {output}{without}")


def append_columns(chunk: pa.Table, names: list[str], columns: list[list]) -> pa.Table:
    """The first of them strings, the others numbers."""
    kinds = itertools.chain([pa.string()], itertools.repeat(pa.float64()))
    for name, values, kind in zip(names, columns, kinds, strict=False):
        chunk = chunk.append_column(name, pa.array(values, kind))
    return chunk


def read_texts(chunk: pa.Table, columns: tuple[str, ...], given: str) -> list[tuple[str, ...]]:
    cells = [text_cells(chunk[name], f"--input {given}: column {name!r}") for name in columns]
    return text_tuples(pa.table(cells, names=columns), columns)


def predict_texts(texts: list[tuple[str, ...]], classifier) -> list[list]:
    """Label, its probability, and that of each class: a list each, None for an empty text."""
    valid = [number for number, text in enumerate(texts) if any(map(str.strip, text))]
    columns = [[None] * len(texts) for _ in range(2 + len(classifier.names))]
    if valid:
        logits = classifier.logits([texts[number] for number in valid])
        shares = logits.double().softmax(-1)
        best = shares.max(-1)
        values = torch.cat([best.values[:, None], shares], dim=1).tolist()
        for number, label, row in zip(valid, best.indices.tolist(), values, strict=True):
            columns[0][number] = classifier.names[label]
            for column, value in zip(columns[1:], row, strict=True):
                column[number] = float(f"{value:.6g}")
    return columns

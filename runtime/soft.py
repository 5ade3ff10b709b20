"""Soft labels: a probability of each class, to be learnt in place of one class.

In: labelled texts; the prefix of the columns, as eval.py --output names them. Out: a distribution
over the classes for each text. Independent of: where the probabilities come from, models.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from runtime.flags import UserError
from runtime.formats import as_strings
from runtime.tables import LabelledTexts, column, list_names, require_column, require_columns

TOLERANCE = 1e-3  # of the sum of a row: eval.py writes six digits, others may write three


def read_soft_labels(texts: LabelledTexts, prefix: str) -> np.ndarray:
    """(texts, classes) float32: of each the probabilities in the columns `prefix` + class, scaled
    to a sum of 1; where a row has none, 1 for its class.

    Raises `UserError` for a class without a column, and for a row whose probabilities are no
    numbers from 0 to 1 with a sum of 1, or are there for some of the classes alone.
    """
    columns = columns_of(texts, prefix)
    for name in columns:
        require_column(texts.table, f"--soft_labels {prefix}", name)
    for part, layout in texts.table.layouts.items():
        require_columns(part, layout, columns)
    soft = read_cells(texts, columns)
    hard = np.isnan(soft).all(1)
    soft[hard] = np.eye(len(columns))[texts.labels[hard]]
    total = soft.sum(1)
    wrong = ~((soft >= 0).all(1) & (np.abs(total - 1) <= TOLERANCE))  # also NaN, of a part
    if wrong.any():
        values = ", ".join(f"{value:g}" for value in soft[wrong.argmax()][:5])
        raise UserError(
            f"{texts.table.given}: {wrong.sum():,} rows have no probabilities with a sum of 1 in "
            f"{', '.join(columns[:5])} (first: {values}); correct them, or leave all cells of such "
            f"a row empty{tell_others(texts, prefix)}"
        )
    return (soft / total[:, None]).astype(np.float32)


def columns_of(texts: LabelledTexts, prefix: str) -> list[str]:
    return [f"{prefix}{name}" for name in texts.names]


def tell_others(texts: LabelledTexts, prefix: str) -> str:
    """The columns of that prefix that belong to no class, in brackets; empty if there are none."""
    own = columns_of(texts, prefix)
    others = [name for name in texts.table.columns if name.startswith(prefix) and name not in own]
    return f" (columns of no class: {list_names(others)})" if others else ""


def describe_soft(
    soft: np.ndarray, train: LabelledTexts, validation: LabelledTexts, prefix: str
) -> list[str]:
    """Lines for the user. `soft`: (training texts, classes), from `read_soft_labels`."""
    several = (soft.max(1) < 1).sum()
    notes = [
        f"--soft_labels {prefix}: {several:,} of {len(soft):,} training texts have a share in more "
        f"than one class{tell_others(train, prefix)}"
    ]
    if others := (soft[np.arange(len(soft)), train.labels] < soft.max(1)).sum():
        notes.append(
            f"warning: of {others:,} training texts another class is likelier than the label; the "
            "probabilities are learnt, not the label"
        )
    if given := count_given(validation, columns_of(train, prefix)):
        notes.append(
            f"warning: {given:,} of the {len(validation):,} texts to validate on have "
            "probabilities, too; if a model gave them, accuracy is agreement with that model: "
            "give --validation_dataset with labels that people gave"
        )
    return notes


def count_given(texts: LabelledTexts, columns: list[str]) -> int:
    """Texts that have a probability; 0 if the columns are not there, or hold something else."""
    if not set(columns) <= set(texts.table.common_columns):
        return 0
    try:
        return int((~np.isnan(read_cells(texts, columns)).all(1)).sum())
    except UserError:
        return 0


def weigh_texts(data: Dataset, weights: np.ndarray) -> np.ndarray:
    """(texts,) the weight of each in the loss, of those of the classes."""
    if "soft" not in data.column_names:
        return weights[column(data, "labels").to_numpy()]
    return soft_of(data).astype(float) @ weights


def soft_of(data: Dataset) -> np.ndarray:
    """(texts, classes) the probabilities beside token ids."""
    return pc.list_flatten(column(data, "soft")).to_numpy().reshape(len(data), -1)


def read_cells(texts: LabelledTexts, columns: list[str]) -> np.ndarray:
    """(texts, columns) float64; NaN for an empty cell."""
    given = texts.table.given
    return np.concatenate([read_numbers(chunk, columns, given) for chunk in texts.tables(columns)])


def read_numbers(chunk: pa.Table, columns: list[str], given: str) -> np.ndarray:
    """(rows, columns) float64; NaN for an empty cell."""
    numbers = []
    for name in columns:
        cells = pc.utf8_trim_whitespace(as_strings(chunk[name]))
        cells = pc.if_else(pc.equal(cells, ""), None, cells)
        try:
            numbers.append(pc.cast(cells, pa.float64()).to_numpy())
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{given}: column {name!r}: {reason}; give numbers") from None
    return np.column_stack(numbers)

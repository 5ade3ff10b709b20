"""Any file, folder or Hub split as a checked table of texts and class labels.

In: a name and the names of two columns. Out: a `Dataset` of `text` and `labels`, every row checked.
Independent of: tokenizers, splits for validation, models.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, List, Value, disable_progress_bars, load_dataset, logging
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher

from runtime.flags import UserError
from runtime.hub import DATA_FORMATS, locate, offline_hint

if not sys.stderr.isatty():
    disable_progress_bars()
logging.set_verbosity(logging.CRITICAL)  # it logs what it then raises, and we report it once


def read_table(
    name: str,
    split: str,
    config_name: str | None = None,
    revision: str | None = None,
    flag="--dataset",
    choices="--dataset_config_name and --train_split",
) -> Dataset:
    """One split, as it stands. A file is whichever split is asked for; all else has its own.

    `choices`: the flags that an error names as what else may be wrong.
    """
    path = locate(name, flag, revision)
    if path and path.is_file():
        source, options = options_of_file(path, split, config_name, f"{flag} {name}")
    else:
        source = name if path is None else str(path)
        options = {"split": split, "name": config_name, "revision": revision}
    has_csv = source == "csv" or bool(path and path.is_dir() and any(path.rglob("*.csv")))
    if has_csv:
        options["keep_default_na"] = False  # or pandas reads the texts "null" and "NA" as missing
    try:
        table = load_dataset(source, **options)
    except (DatasetsError, OSError, ValueError, StopIteration) as error:
        reason, remedy = explain_unreadable(path, error, choices)
        raise UserError(f"{flag} {name}: {reason}; {remedy}") from None
    if has_csv and "__index_level_0__" in table.column_names:
        # pandas takes the first of them for row names, and every column for its right neighbour.
        raise UserError(
            f"{flag} {name}: rows hold more values than the header has names; "
            "put texts that hold commas in quotes"
        )
    return table


def options_of_file(path: Path, split: str, config_name: str | None, given: str):
    """What `load_dataset` needs to read one local file: (its reader, options)."""
    if path.suffix not in DATA_FORMATS:
        raise UserError(f"{given}: unknown kind of file; give {', '.join(DATA_FORMATS)}")
    if config_name:
        raise UserError(f"{given}: a file has no configuration {config_name}; give none")
    if set("[+") & set(split):
        raise UserError(f"{given}: a file has no split {split}; give a plain name for it")
    return DATA_FORMATS[path.suffix], {"split": split, "data_files": {split: str(path)}}


def explain_unreadable(path: Path | None, error: Exception, choices: str) -> tuple[str, str]:
    """(reason, remedy) for what `load_dataset` raised."""
    # A JSON lines file without lines makes it run out of an iterator, with no message.
    reason = " ".join(str(error.__cause__ or error).split()).rstrip(".!") or "holds no rows"
    if path is None:
        return reason, f"check the name{offline_hint()}, {choices}"
    if path.is_file():
        return reason, "correct the file"
    if not any(file.suffix in DATA_FORMATS for file in path.rglob("*")):
        reason = f"holds no {', '.join(DATA_FORMATS)} file"
    return reason, f"check its files, {choices}"


def label_rows(
    table: Dataset, text_column: str, label_column: str, names: list[str] | None = None
) -> Dataset:
    """Columns `text` (string) and `labels` (ClassLabel), every row checked.

    Args:
        table: any columns; labels are class labels, integers, booleans or strings.
        names: those of a trained model, which must include the table's; default: the table's.
    """
    check_columns(table, text_column, label_column)
    check_texts(table, text_column)
    own, values, which = read_labels(table, label_column)
    if names is None and len(set(values)) < 2:
        raise UserError(
            f"--label_column {label_column}: only class {values[0]!r}; give two or more"
        )
    names = own if names is None else names
    if unknown := sorted(set(values) - set(names)):
        raise UserError(
            f"label {unknown[0]!r} is unknown to the model; give one of {', '.join(names)}"
        )
    labels = np.array([names.index(value) for value in values])[which]
    columns = {"text": column(table, text_column), "labels": labels}
    identity = Hasher.hash((table._fingerprint, text_column, label_column, names))
    result = Dataset(pa.table(columns), fingerprint=identity)
    return result.cast_column("labels", ClassLabel(names=names))


def check_columns(table: Dataset, text_column: str, label_column: str) -> None:
    for flag, wanted in (("--text_column", text_column), ("--label_column", label_column)):
        if wanted not in table.column_names:
            raise UserError(
                f"{flag} {wanted}: no such column; give one of {', '.join(table.column_names)}"
            )
    if text_column == label_column:
        raise UserError(f"--label_column {label_column}: is the --text_column too; give another")
    if not len(table):
        raise UserError("the data set holds no rows; give one that does")


def read_labels(table: Dataset, name: str) -> tuple[list[str], list[str], np.ndarray]:
    """The names of all classes; those that occur; and (rows,) which of these each row has.

    Raises `UserError` for a column that holds no classes, or a row without one.
    """
    feature = table.features[name]
    check_class_type(feature, name)
    encoded = pc.dictionary_encode(column(table, name), null_encoding="encode").combine_chunks()
    values, which = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    for number, label in enumerate(values):
        unnamed = label == -1 and isinstance(feature, ClassLabel)  # -1 / 1 are classes elsewhere
        if label is None or not str(label).strip() or unnamed:
            raise UserError(
                f"--label_column {name}: row {np.argmax(which == number)} of {len(table)} "
                f"has no label ({label!r}); remove such rows"
            )
    if isinstance(feature, ClassLabel):
        return feature.names, [feature.names[label] for label in values], which
    return [str(label) for label in sorted(values)], [str(label) for label in values], which


def check_class_type(feature, name: str) -> None:
    kind = "lists" if isinstance(feature, List) else getattr(feature, "dtype", "mixed values")
    classes = ("int", "uint", "bool", "string", "large_string", "timestamp", "date", "null")
    if not isinstance(feature, ClassLabel | Value) or not kind.startswith(classes):
        raise UserError(
            f"--label_column {name}: holds {kind}; give one class label per text, as integer "
            "or string (regression and several labels per text are not supported)"
        )


def column(data: Dataset, name: str) -> pa.ChunkedArray:
    """One column, where it lies: no list of Python objects, which takes several times the room."""
    return data.select_columns([name]).with_format("arrow")[:][name]


def check_texts(table: Dataset, name: str) -> None:
    """Raises `UserError` at the first value that is no text or an empty one."""
    texts = column(table, name)
    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
        empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0).fill_null(True)
    else:  # no text, or values of several kinds
        empty = pa.array(not (isinstance(text, str) and text.strip()) for text in table[name])
    row = pc.index(empty, True).as_py()
    if row >= 0:
        text = table[name][row]
        what = "is empty" if text is None or isinstance(text, str) else f"is {text!r}, not text"
        raise UserError(f"row {row} of column {name!r} {what}; remove or fill such rows")


def fingerprint(*splits: Dataset) -> str:
    """16 digits of a SHA-256 of all token ids and labels, in order: to recognise the same data."""
    digest = hashlib.sha256()
    for split in splits:
        for table in split.with_format("arrow").iter(batch_size=1000):
            digest.update(pc.list_flatten(table["input_ids"]).to_numpy().tobytes())
            digest.update(table["length"].to_numpy().tobytes())
            digest.update(table["labels"].to_numpy().tobytes())
    return digest.hexdigest()[:16]

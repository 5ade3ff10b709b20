"""Rows computed once: kept on the disk under what they depend on, read from there ever after.

In: a key, and what computes the rows. Out: the rows, mapped from the disk.
Independent of: what the rows are.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from datasets import config as datasets_config

from runtime.flags import UserError


def cached_rows(kind: str, key: str, compute: Callable[[], Iterable[pa.Table]]) -> Dataset:
    """The rows of that key, from `compute()` if they are not there yet.

    The file gets its name when it is whole, so one that a kill left half-written is never read.
    Raises `UserError` for a cache that cannot be written.
    """
    path = Path(datasets_config.HF_DATASETS_CACHE, kind, f"{key}.arrow")
    with contextlib.suppress(OSError, pa.ArrowException):  # not there, or damaged: computed anew
        return Dataset.from_file(str(path))
    new = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.touch()
    except OSError as error:
        raise UserError(
            f"{path.parent}: {error.strerror}, so token ids cannot be cached there; set "
            "HF_HOME to a folder that can be written, or check this one"
        ) from None
    try:
        write_tables(new, compute())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return Dataset.from_file(str(path))


def write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    tables = iter(tables)
    first = next(tables)
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())  # or a power failure may leave the name, and zeros for the rows

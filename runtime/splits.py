"""A name and a split to the table that they mean: a file, files of a folder, or rows of the Hub.

In: what a user gave as --dataset or --input. Out: a `Table`, whose rows are read when asked for.
Independent of: what the columns mean, tokenizers, models.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    disable_progress_bars,
    load_dataset_builder,
    load_from_disk,
    logging,
)
from datasets.arrow_reader import ReadInstruction
from datasets.exceptions import DatasetsError
from huggingface_hub import is_offline_mode

from runtime.flags import DISK_ERRORS, UserError
from runtime.folders import MANIFEST
from runtime.formats import (
    DELIMITERS,
    FORMATS,
    LINES,
    explained,
    find_delimiter,
    format_of,
    read_columns,
    stem_of,
)
from runtime.hub import hub_remedy, locate, require_downloaded
from runtime.tables import Table

if not sys.stderr.isatty():
    disable_progress_bars()
logging.set_verbosity(logging.CRITICAL)  # it logs what it then raises, and we report it once

VALIDATION = ("validation", "valid", "dev", "val")  # usual names of a split for validation
SPLITS = ("train", *VALIDATION, "test")


def read_table(
    name: str,
    split: str,
    config_name: str | None = None,
    revision: str | None = None,
    flag="--dataset",
    choices="--train_split",
) -> Table:
    """One split, as it stands now. A file is whichever split is asked for; all else has its own.

    `choices`: the flags that an error names as what else may be wrong.
    """
    given = f"{flag} {name}"
    path = locate(name, flag, revision)
    if path is None:
        return Table(given, read_from_hub(name, split, config_name, revision, given, choices))
    if config_name:
        raise UserError(f"{given}: a local path has no configuration {config_name}; give none")
    if is_saved(path):
        return Table(given, read_saved(path, split, given))
    require_plain(split, given)
    if path.is_file():
        unlabelled = flag in ("--input", "--unlabelled")
        read = (*FORMATS, LINES) if unlabelled else FORMATS
        if format_of(path) not in read:
            kinds = ", ".join(read)
            raise UserError(f"{given}: unknown kind of file; give {kinds}, also with .gz")
        return Table(given, {path.name: path}, tell_delimiter(path))
    return read_folder(path, split, given, choices)


def require_plain(split: str, given: str) -> None:
    if set("[+") & set(split):
        raise UserError(f"{given}: has no split {split}; give a plain name for it")


def tell_delimiter(path: Path) -> tuple[str, ...]:
    """A line that says it, if it is not the one that the name says."""
    if format_of(path) not in DELIMITERS:
        return ()
    with explained(path):
        found = find_delimiter(path)
    words = {",": "commas", ";": "semicolons", "\t": "tabs"}[found]
    usual = found == DELIMITERS[format_of(path)][0]
    return () if usual else (f"{path}: its columns are separated by {words}",)


# ---------------------------------------------------------------- a folder


def data_files(folder: Path, new: Path | None = None) -> list[Path]:
    """Those of a format that we read, at any depth, also behind links; but no hidden ones, nothing
    that a run of ours wrote, and no .json beside other data that does not name its split: most of
    these hold settings. With `new`, a full path: as if that file were there."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if MANIFEST in names or os.path.realpath(here) in seen:  # a link may lead back
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders[:] = [name for name in folders if not name.startswith(".")]
        if new and Path(here) == new.parent:
            names = {*names, new.name}
        visible = (Path(here, name) for name in names if not name.startswith("."))
        found += [
            path for path in visible if format_of(path) in FORMATS and path.name not in OF_LIBRARY
        ]
    others = any(format_of(path) != ".json" for path in found)
    return sorted(
        path
        for path in found
        if format_of(path) != ".json" or not others or split_names(Path(path.name), set(SPLITS))
    )


def may_be_read(folder: Path, file: Path) -> bool:
    """Whether a file that is written there would be in one of the splits of `folder`."""
    folder, file = folder.resolve(), file.resolve()
    inside = file.is_relative_to(folder) and not is_saved(folder)
    return inside and any(file in files_of(folder, split, file) for split in SPLITS)


OF_LIBRARY = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def read_folder(folder: Path, split: str, given: str, choices: str) -> Table:
    files = files_of(folder, split)
    if not files:
        there = ", ".join(name_in(folder, data_files(folder)[:9]))
        reason = f"no file for the split {split} among {there}" if there else NO_FILES
        raise UserError(f"{given}: {reason}; check its files, {choices}")
    require_single_copies(files, given)
    predictions = [file.name for file in files if holds_predictions(file)]
    if 0 < len(predictions) < len(files):
        raise UserError(
            f"{given}: {predictions[0]} holds predictions (a column predicted_label), and other "
            "files do not: its texts may come twice; move it, or rename that column"
        )
    parts = dict(zip(name_in(folder, files), files, strict=True))
    notes = [f"{given}: {split} is {len(files)} files, {', '.join(parts)}"] * (len(files) > 1)
    notes += [line for file in files for line in tell_delimiter(file)]
    return Table(given, parts, tuple(notes))


def holds_predictions(file: Path) -> bool:
    """Whether eval.py wrote it, as --predictions, --errors or --output."""
    return {"predicted_label", "probability"} <= set(read_columns(file))


NO_FILES = f"holds no {', '.join(FORMATS)} file"


def name_in(folder: Path, files: Iterable[Path]) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


def files_of(folder: Path, split: str, new: Path | None = None) -> tuple[Path, ...]:
    """The files that belong to the split by `split_names`. Where no name says any, all files are
    "train"."""
    named = name_splits(folder, {split, *SPLITS}, new)
    if split == "train" and not any(named.values()):
        return tuple(named)
    # A name of two splits, such as train_test.csv, is of neither.
    return tuple(file for file in named if named[file] == {split})


def require_single_copies(files: tuple[Path, ...], given: str) -> None:
    """Raises `UserError` for train.csv beside train.parquet: the same rows would come twice."""
    seen = {}
    for file in files:
        stem = file.with_name(stem_of(file))
        if stem in seen:
            raise UserError(
                f"{given}: has {seen[stem].name} and {file.name}; keep one, or, if they hold "
                "different rows, give them different names"
            )
        seen[stem] = file


def name_splits(folder: Path, known: set[str], new: Path | None = None) -> dict[Path, set[str]]:
    files = data_files(folder, new)
    return {file: split_names(file.relative_to(folder), known) for file in files}


def split_names(path: Path, known: set[str]) -> set[str]:
    """Which of the known splits the path says: the file's name if it is, begins or ends with one;
    else so the name of the nearest folder; else the file's name with one in its middle."""
    stem, *folders = stem_of(path), *reversed(path.parts[:-1])
    for part, pattern in (*((part, EDGE) for part in (stem, *folders)), (stem, ANYWHERE)):
        found = {
            name
            for name in (*known, *WORDS)
            if re.search(pattern.format(re.escape(name)), part, re.I)
        }
        if found:  # validation_matched is not validation, if it is known
            return {name for name in found if not any(name in other for other in found - {name})}
    return set()


EDGE = "^{0}([^a-z]|$)|[^a-z]{0}$"
ANYWHERE = "[^a-z]{0}[^a-z]"
WORDS = ("training", "testing", "eval", "evaluation")  # of files that are not to be trained on


def unused_files(name: str, *tables: Table) -> list[str]:
    """A line that names the data files of a folder that none of the tables reads, if any."""
    folder = Path(name)
    if not folder.is_dir() or is_saved(folder):
        return []
    used = [part for table in tables for part in table.parts.values()]
    unused = name_in(folder, (file for file in data_files(folder) if file not in used))
    return [f"not used here, of {name}: {', '.join(unused)}"] if unused else []


def is_saved(folder: Path) -> bool:
    """Whether save_to_disk of the datasets library wrote it."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def load_saved(folder: Path, given: str) -> Dataset | DatasetDict:
    with library_explained(given, "save it anew with save_to_disk"):
        return load_from_disk(str(folder))


def read_saved(folder: Path, split: str, given: str) -> dict[str, Dataset]:
    """The rows of a split, or of a slice or sum of splits in the datasets library's notation."""
    saved = load_saved(folder, given)
    if isinstance(saved, Dataset):  # of one split, which like a file is the one asked for
        require_plain(split, given)
        return {folder.name: saved}
    if split in saved:
        return {f"the split {split}": saved[split]}
    sizes = {name: len(rows) for name, rows in saved.items()}
    try:
        pieces = ReadInstruction.from_spec(split).to_absolute(sizes)
    except ValueError:
        raise UserError(f"{given}: has no split {split}; give one of {', '.join(saved)}") from None
    return {
        f"{piece.splitname}[{piece.from_}:{piece.to}]": saved[piece.splitname].select(
            range(piece.from_, piece.to)
        )
        for piece in pieces
    }


# ---------------------------------------------------------------- the Hub


def read_from_hub(
    name, split, config_name, revision, given: str, choices: str
) -> dict[str, Dataset]:
    with library_explained(given, hub_remedy(f"--dataset_config_name and {choices}")):
        builder = open_hub(name, config_name, revision)
        table = builder.as_dataset(split=split)
    if hasattr(builder.config, "keep_default_na") and "__index_level_0__" in table.column_names:
        # pandas takes the first column for row names, and every column for its right neighbour.
        raise UserError(
            f"{given}: rows hold more values than the header has names; "
            "put texts that hold commas in quotes"
        )
    return {f"the split {split}": table}


@lru_cache  # once for training and validation
def open_hub(name: str, config_name: str | None, revision: str | None):
    """The datasets library's builder, its files downloaded."""
    require_downloaded(name)
    options = {"name": config_name, "revision": revision}
    builder = load_dataset_builder(name, **options)
    if not is_offline_mode() and builder.__module__.startswith(CACHE_MODULE):
        # What is not on the Hub it looks for in its cache, where it finds a folder of that name
        # that some other project has read.
        raise ValueError("is not on the Hub")
    if hasattr(builder.config, "keep_default_na"):  # or pandas reads "null" and "NA" as missing
        builder = load_dataset_builder(name, **options, keep_default_na=False)
    builder.download_and_prepare()
    return builder


CACHE_MODULE = "datasets.packaged_modules.cache"


@contextlib.contextmanager
def library_explained(given: str, remedy: str):
    """What the datasets library raises, as one `UserError`."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".!")
        raise UserError(f"{given}: {reason or type(error).__name__}; {remedy}") from None


LIBRARY_ERRORS = (
    DatasetsError,
    *(OSError, ValueError, KeyError, TypeError, StopIteration),  # broken files
    RuntimeError,  # a data set that needs a script of its own, or a kind it cannot read
    pa.ArrowException,
)


# ---------------------------------------------------------------- what a training reads


def read_training(config) -> Table:
    source = config.dataset_config_name, config.dataset_revision
    return read_table(config.dataset, config.train_split, *source)


def read_validation(config) -> Table | None:
    """The texts to validate on that the user names, or those that the data set has for it; None: a
    part of the training split is to be drawn."""
    own, split = config.validation_dataset, config.validation_split
    if config.validation_size and (own or split):
        raise UserError(
            f"--validation_size {config.validation_size}: given with --validation_dataset or "
            "--validation_split; give one of them"
        )
    if own:
        named = name_splits(Path(own), set(SPLITS))
        unnamed = named and not any(named.values())
        split = split or find_validation(own, flag="--validation_dataset")
        split = split or ("train" if unnamed else "validation")  # see files_of
        return read_table(own, split, flag="--validation_dataset", choices="--validation_split")
    if split and Path(config.dataset).is_file():
        raise UserError(
            f"--validation_split {split}: --dataset {config.dataset} is one file, which has no "
            "other split; give --validation_dataset FILE"
        )
    source = config.dataset_config_name, config.dataset_revision
    if not split and not config.validation_size:
        split = find_validation(config.dataset, *source)
        if split in re.findall(r"\w+", config.train_split):
            return None  # it is trained on
    if not split:
        return None
    return read_table(config.dataset, split, *source, choices="--validation_split")


def find_validation(
    name: str, config_name: str | None = None, revision: str | None = None, flag="--dataset"
) -> str | None:
    """The data set's own split for validation, if it has one with a usual name."""
    path = locate(name, flag, revision)
    if path is None:
        with library_explained(f"{flag} {name}", hub_remedy()):
            there = open_hub(name, config_name, revision).info.splits or {}
    elif path.is_file():
        there = {}
    elif is_saved(path):
        saved = load_saved(path, f"{flag} {name}")
        there = saved if isinstance(saved, DatasetDict) else {}
    else:
        named = name_splits(path, set(SPLITS)).values()
        there = {name for names in named if len(names) == 1 for name in names}
    return next((split for split in VALIDATION if split in there), None)

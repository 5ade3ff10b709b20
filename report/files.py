"""Whether reports and predictions can be written: checked before the work, and never over others.

In: paths that a user gave. Out: a `UserError`, or nothing. Independent of: models, metrics.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from runtime.flags import UserError
from runtime.formats import FORMATS, OUTPUT_FORMATS, format_of, is_gzipped, read_columns


def check_source(source: Path, output: Path) -> None:
    """Raises `UserError` unless predictions for texts in `source` can go to `output`."""
    if not source.is_file():
        raise UserError(f"--input {source}: is no file; give a {', '.join(FORMATS)} file")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output}: is the --input itself; give another name")


def check_output(flag: str, output: Path, overwrite: bool) -> None:
    """Raises `UserError` unless a table can be written there, over nothing but, if asked for, one
    of predictions."""
    kind = format_of(output)
    if kind not in OUTPUT_FORMATS or (kind == ".parquet" and is_gzipped(output)):
        kinds = ", ".join(OUTPUT_FORMATS)
        raise UserError(f"{flag} {output}: unknown kind of file; give one of {kinds}")
    check_writable(flag, output)
    require_ours(flag, output, overwrite, holds_predictions)


def holds_predictions(path: Path) -> bool:
    try:
        columns = read_columns(path)
    except UserError:  # not what its name says
        return False
    return not columns or "predicted_label" in columns


def require_ours(flag: str, path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raises `UserError` if a file is there, unless it is to be replaced and is one of ours: a
    --overwrite must not cost the user a file of their own, such as a test set."""
    if not path.exists():
        return
    if not is_ours(path):
        raise UserError(f"{flag} {path}: exists, and is not of this program; give another name")
    if not overwrite:
        raise UserError(f"{flag} {path}: exists; give another name, or --overwrite")


def check_new(flag: str, path: Path, overwrite: bool, key: str) -> None:
    """Raises `UserError` unless a file can be written there, over nothing but, if asked for, one of
    ours: JSON that has that key."""
    check_writable(flag, path)
    require_ours(flag, path, overwrite, lambda path: has_key(path, key))


PAGE_MARK = "reference-loop report"  # what a page of ours says of what made it


def check_page(path: Path, report: str | None, overwrite: bool) -> None:
    """Raises `UserError` unless a page of HTML can be written there, over nothing but, if asked
    for, one of ours. Args: report: what --report gives."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html {path}: give a name that ends in .html")
    if report and Path(report).resolve() == path.resolve():
        raise UserError(f"--html {path}: is the --report itself; give another name")
    check_writable("--html", path)
    mark = PAGE_MARK.encode()
    require_ours("--html", path, overwrite, lambda path: mark in path.read_bytes()[:2000])


def has_key(path: Path, key: str) -> bool:
    return key in read_object(path)


def read_object(path: Path) -> dict:
    """{} for a file that is not one object of JSON."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return {}


def check_writable(flag: str, path: Path) -> None:
    """Raises `UserError` if a file cannot be written there, before there is one to lose."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        why = "cannot be written in" if path.parent.is_dir() else "is not there"
        raise UserError(f"{flag} {path}: folder {path.parent} {why}; make it, or give another")


def refuse_to_replace(path: Path, about: dict, compared: dict, overwrite: bool) -> None:
    """A report is replaced only by one of the same weights on the same texts, and a comparison in
    it by one with the same models. Args: compared: these, by their sides."""
    check_writable("--report", path)
    require_ours("--report", path, True, lambda path: isinstance(read_object(path).get("of"), dict))
    if not path.exists() or overwrite:
        return
    old = read_object(path)
    if not about.items() <= old["of"].items():
        raise UserError(f"{path} holds another report; give --report FILE, or --overwrite")
    before = old.get("comparison", compared)
    if any(before[side] != folders for side, folders in compared.items()):
        raise UserError(
            f"{path} holds a comparison of {', '.join(before['ours'])} with "
            f"{', '.join(before['other'])}; give --report FILE, or --overwrite"
        )

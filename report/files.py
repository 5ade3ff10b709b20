"""Whether reports and predictions can be written: checked before the work, and never over others.

In: paths that a user gave. Out: a `UserError`, or nothing. Independent of: models, metrics.
"""

import json
import os
from pathlib import Path

from runtime.flags import UserError
from runtime.formats import FORMATS, OUTPUT_FORMATS, format_of, is_gzipped


def check_source(source: Path, output: Path) -> None:
    """Raises `UserError` unless predictions for texts in `source` can go to `output`."""
    if not source.is_file():
        raise UserError(f"--input {source}: is no file; give a {', '.join(FORMATS)} file")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output}: is the --input itself; give another name")


def check_output(flag: str, output: Path, overwrite: bool) -> None:
    """Raises `UserError` unless a table can be written there."""
    kind = format_of(output)
    if kind not in OUTPUT_FORMATS or (kind == ".parquet" and is_gzipped(output)):
        kinds = ", ".join(OUTPUT_FORMATS)
        raise UserError(f"{flag} {output}: unknown kind of file; give one of {kinds}")
    if output.exists() and not overwrite:
        raise UserError(f"{flag} {output}: exists; give another name, or --overwrite")
    check_writable(flag, output)


def check_new(flag: str, path: Path, overwrite: bool, key: str) -> None:
    """Raises `UserError` unless a file can be written there, over nothing but, if asked for, one of
    ours: JSON that has that key."""
    check_writable(flag, path)
    if path.exists() and not (overwrite and has_key(path, key)):
        raise UserError(
            f"{flag} {path}: exists; give another name (or --overwrite, for one of ours)"
        )


PAGE_MARK = "reference-loop report"  # what a page of ours says of what made it


def check_page(path: Path, report: str | None, overwrite: bool) -> None:
    """Raises `UserError` unless a page of HTML can be written there, over nothing but, if asked
    for, one of ours. Args: report: what --report gives."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html {path}: give a name that ends in .html")
    if report and Path(report).resolve() == path.resolve():
        raise UserError(f"--html {path}: is the --report itself; give another name")
    check_writable("--html", path)
    ours = path.is_file() and PAGE_MARK.encode() in path.read_bytes()[:2000]
    if path.exists() and not (overwrite and ours):
        raise UserError(
            f"--html {path}: exists; give another name (or --overwrite, for one of ours)"
        )


def has_key(path: Path, key: str) -> bool:
    try:
        return key in dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return False


def check_writable(flag: str, path: Path) -> None:
    """Raises `UserError` if a file cannot be written there, before there is one to lose."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        why = "cannot be written in" if path.parent.is_dir() else "is not there"
        raise UserError(f"{flag} {path}: folder {path.parent} {why}; make it, or give another")


def refuse_to_replace(path: Path, about: dict, overwrite: bool) -> None:
    """A report is replaced only by one of the same weights on the same texts."""
    check_writable("--report", path)
    if path.exists() and not overwrite:
        try:
            same = about.items() <= json.loads(path.read_text(encoding="utf-8"))["of"].items()
        except (ValueError, KeyError, TypeError, AttributeError):
            same = False
        if not same:
            raise UserError(f"{path} holds another report; give --report FILE, or --overwrite")

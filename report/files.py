"""Whether reports and predictions can be written: checked before the work, and never over others.

In: paths that a user gave. Out: a `UserError`, or nothing. Independent of: models, metrics.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from runtime.flags import UserError
from runtime.formats import FORMATS, LINES, OUTPUT_FORMATS, format_of, is_gzipped, read_columns
from runtime.splits import holds_predictions, may_be_read

READ = (*FORMATS, LINES)


def check_source(source: Path, output: Path) -> None:
    """Raises `UserError` unless predictions for texts in `source` can go to `output`."""
    if not source.exists():
        raise UserError(f"--input {source}: no such file; check the path")
    if not source.is_file():
        raise UserError(f"--input {source}: is no file; give a {', '.join(READ)} file")
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
    require_ours(flag, output, overwrite, is_empty_or_predictions)


def is_empty_or_predictions(path: Path) -> bool:
    try:
        return not read_columns(path) or holds_predictions(path)
    except UserError:  # not what its name says
        return False


def require_ours(flag: str, path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raises `UserError` if a file is there, unless it is to be replaced and is one of ours: a
    --overwrite must not cost the user a file of their own, such as a test set."""
    if not path.exists():
        return
    if not is_ours(path):
        raise UserError(f"{flag} {path}: exists, and is not of this program; give another name")
    if not overwrite:
        raise UserError(f"{flag} {path}: exists; give another name, or --overwrite")


def check_look(path: Path, overwrite: bool) -> None:
    """Raises `UserError` unless what data.py finds can be written there, over nothing but, if asked
    for, an earlier look."""
    check_writable("--json", path)
    require_ours("--json", path, overwrite, lambda path: "in_both" in read_object(path))


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


def read_object(path: Path) -> dict:
    """{} for a file that is not one object of JSON."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return {}


def keep_out_of_data(outputs: dict[str, str | Path | None], datasets: Iterable[str | None]) -> None:
    """Raises `UserError` for a file, by its flag, that the next command which reads one of these
    folders would take for texts."""
    for flag, path in outputs.items():
        for folder in datasets:
            if path and os.path.isdir(folder or "") and may_be_read(Path(folder), Path(path)):
                raise UserError(
                    f"--{flag} {path}: would be read as texts of the data set {folder}; give "
                    f"--{flag} a place elsewhere"
                )


def check_writable(flag: str, path: Path) -> None:
    """Raises `UserError` if a file cannot be written there, before there is one to lose."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        why = "cannot be written in" if path.parent.is_dir() else "is not there"
        raise UserError(f"{flag} {path}: folder {path.parent} {why}; make it, or give another")


def read_replaced(path: Path, about: dict, sides: dict, overwrite: bool) -> dict:
    """The report that one of the same weights on the same texts may replace; {} if there is none.

    Raises `UserError` for any other, and for one with a comparison of other weights than those of
    `sides`, the models to be compared now. Weights, not names of folders: a training in the same
    folder makes another model, and a folder may be moved.
    """
    check_writable("--report", path)
    require_ours("--report", path, True, lambda path: isinstance(read_object(path).get("of"), dict))
    if not path.exists() or overwrite:
        return {}
    old = read_object(path)
    before = {"split": "test", "long": "cut"} | old["of"]  # which older versions did not write
    if differs := [name for name in about if before.get(name) != about[name]]:
        names = (name if name in ("texts", "weights") else f"--{name}" for name in differs)
        raise UserError(
            f"{path} holds a report that differs in {', '.join(names)}; give --report FILE, or "
            "--overwrite"
        )
    if "comparison" in old:
        models = old["comparison"].get("models", {})
        if not models or (sides and list_weights(models) != list_weights(sides)):
            raise UserError(
                f"{path} holds a comparison of other models, or of an earlier version; give "
                "--report FILE, or --overwrite"
            )
    return old


def list_weights(sides: dict[str, list[dict]]) -> list[list[str]]:
    return [sorted(model["weights"] for model in side) for side in sides.values()]

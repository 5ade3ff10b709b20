"""Folders that are written whole or not at all, and verified when read: `last/` and `best/`.

In: a folder and a function that fills it. Out: the folder, replaced in one move; or a verified one.
Refuses to know: what the numbers in it mean, and when to save.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from config import UserError

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A folder that is not what was written: missing, torn, truncated or altered."""


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Replace `folder` by one that `fill(temporary folder)` fills, even through a power cut.

    Files first and on disk, the manifest last, then one rename. Whoever reads `folder` finds the
    old contents whole or the new ones whole. What a killed writer left behind is removed here.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    sizes = {
        path.relative_to(temporary).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": digest(path),
        }
        for path in files
    }
    (temporary / MANIFEST).write_text(json.dumps(sizes, indent=1))
    for path in [*files, temporary / MANIFEST, temporary]:
        sync(path)
    if folder.exists():
        exchange(temporary, folder)
        sync(folder.parent)
        shutil.rmtree(temporary)
    else:
        temporary.rename(folder)
        sync(folder.parent)


def verify(folder: Path) -> None:
    """Raises `Damaged` unless every file of the manifest is there, with its size and checksum.

    Files beside those listed (a report, a note) do not matter.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text())
        wrong = [
            name
            for name, about in listed.items()
            if (folder / name).stat().st_size != about["bytes"]
            or digest(folder / name) != about["sha256"]
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{folder}: {error}") from None
    if not listed:
        raise Damaged(f"{folder}: {MANIFEST} lists no file")
    if wrong:
        raise Damaged(f"{folder}: {wrong[0]} is not what was written")


def newest(folder: Path) -> Path | None:
    """The folder to read: `folder` if whole, else a whole one that a killed `write` left beside it.

    None where nothing was ever written. Raises `UserError` if something was, but nothing is whole.
    """
    candidates = [folder, folder.with_name(f".{folder.name}.new")]
    present = [path for path in candidates if path.exists()]
    damage = []
    for path in present:
        try:
            verify(path)
        except Damaged as error:
            damage.append(str(error))
            continue
        for line in damage:
            print(f"warning: {line}; using {path}", file=sys.stderr)
        if not folder.exists():
            path.rename(folder)  # what a writer that died between two renames did not come to
            return folder
        return path
    if folder.exists():
        raise UserError(
            f"{damage[0]}; no whole copy is left; restore it, or remove it to start anew"
        )
    return None


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the kernel put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step, so that `old` is loadable at every instant.

    Linux and macOS have a call for it, Python does not. Elsewhere two renames: `newest` finds the
    new folder if the process dies between them.
    """
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    at_fdcwd = -2 if sys.platform == "darwin" else -100
    for name in ("renameat2", "renameatx_np"):  # both: (fd, path, fd, path, 2 = exchange)
        if hasattr(libc, name):
            call = getattr(libc, name)
            if call(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), 2) == 0:
                return
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    new.rename(old)
    aside.rename(new)

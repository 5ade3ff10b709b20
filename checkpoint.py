"""Folders that are written whole or not at all, and verified when read: `last/` and `best/`.

In: a folder and a function that fills it. Out: the folder, replaced in one move; or a verified one.
Refuses to know: what the numbers in it mean, and when to save.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from config import UserError

MANIFEST = "manifest.json"
UNLISTED = {"README.md"}  # a model card may be edited


class Damaged(Exception):
    """A folder that is not what was written: missing, torn, truncated or altered."""


def spare(folder: Path) -> Path:
    """The other copy, beside `folder`: the one before, or the next while it is written."""
    return folder.with_name(f".{folder.name}.spare")


def write(folder: Path, fill: Callable[[Path], None], size: int = 0) -> None:
    """Replace `folder` by one that `fill(temporary folder)` fills, even through a power cut.

    Files first and on disk, the manifest last, then one rename. Whoever reads `folder` finds the
    old contents whole or the new ones whole, and the old ones stay as `spare` until the next write.
    Files of the user's in `folder` come along. Raises `UserError` if `size` bytes are not free, or
    if writing fails: then `folder` is what it was.
    """
    new = spare(folder)
    shutil.rmtree(new, ignore_errors=True)
    need_room(folder.parent, size)
    try:
        new.mkdir(parents=True)
        fill(new)
        written = sorted(path for path in new.rglob("*") if path.is_file())
        sizes = {
            path.relative_to(new).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in written
            if path.name not in UNLISTED
        }
        (new / MANIFEST).write_text(json.dumps(sizes, indent=1))
        if folder.exists():
            others = already_in(folder, new)
            shutil.copytree(folder, new, symlinks=True, ignore=others, dirs_exist_ok=True)
        for path in [*new.rglob("*"), new]:
            if not path.is_symlink():
                sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(
            f"{folder} cannot be written: {error}; what was there before is whole: mend that, "
            "and run the same command again"
        ) from error
    if folder.exists():
        exchange(new, folder)
    else:
        new.rename(folder)
    sync(folder.parent)


def already_in(folder: Path, new: Path):
    """For copytree: leave out what `folder`'s manifest lists, and names that `new` has as well."""
    try:
        ours = set(json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        ours = set()

    def leave_out(at: str, names: list[str]) -> set[str]:
        here = Path(at).relative_to(folder)
        paths = {name: here / name for name in names}
        return {
            name
            for name, path in paths.items()
            if path.as_posix() in ours or (new / path).is_file()
        }

    return leave_out


def need_room(folder: Path, size: int) -> None:
    """Raises `UserError` unless `size` bytes are free there. (A quota shows only in a write.)"""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder}: a save needs {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            "make room, and run the same command again"
        )


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


def newest(folder: Path, wanted: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """`folder`, once it holds a whole copy that is `wanted`: its own contents, else `spare`'s.

    None where nothing was ever written. Raises `UserError` if something was, but no such copy is
    left. Only one process may call this.
    """
    damage = []
    for path in (folder, spare(folder)):
        try:
            verify(path)
            found = wanted(path)
        except Damaged as error:
            damage.append(str(error))
            continue
        if found and path != folder:
            for line in damage if folder.exists() else ():
                print(f"warning: {line}; using the copy of before", file=sys.stderr)
            exchange(path, folder) if folder.exists() else path.rename(folder)
        if found:
            return folder
    if not folder.exists():
        return None
    why = damage[0] if damage else f"{folder}: is not the one that was asked for"
    raise UserError(f"{why}; no whole copy is left; restore it, or start anew with --overwrite")


@contextlib.contextmanager
def lock(folder: Path):
    """One run at a time in `folder`, made if it is not there. Raises `UserError` if one lives.

    flock(2): the kernel lets go when a process ends, however it ends: a killed run is in nobody's
    way. The file goes at the end, by whoever holds the lock on the file that has its name.
    """
    path = folder / ".lock"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        while not (holds(file) and path.exists() and os.path.samefile(path, file.fileno())):
            file = path.open("a+")
    except BlockingIOError:
        raise UserError(
            f"--output_dir {folder}: {path.read_text() or 'another process'} trains there; "
            "give another folder, or let it end"
        ) from None
    except OSError as error:
        raise UserError(f"--output_dir {folder}: {error.strerror}; give another folder") from None
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink()
            if made and not any(folder.iterdir()):
                folder.rmdir()  # a mistake found later leaves nothing behind


def holds(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise
        print(f"warning: {file.name}: this disk has no locks; start no second run", file=sys.stderr)
    return True


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

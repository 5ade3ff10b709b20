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

from config import GO_ON, UserError

MANIFEST = "manifest.json"
CARD = "README.md"  # a model card is for editing: it is never damaged


class Damaged(Exception):
    """A folder that is not what was written: missing, torn, truncated or altered."""


def spare(folder: Path) -> Path:
    """The other copy, beside `folder`: the one before, or the next while it is written."""
    return folder.resolve().with_name(f".{folder.resolve().name}.spare")


def aside(folder: Path) -> Path:
    """Where `folder` is for an instant while two renames replace it (see `exchange`)."""
    return folder.resolve().with_name(f".{folder.resolve().name}.old")


def write(folder: Path, fill: Callable[[Path], None], size: int = 0) -> None:
    """Replace `folder` by one that `fill(temporary folder)` fills, even through a power cut.

    Files first and on disk, the manifest last, then one `exchange`. Whoever reads `folder` finds
    the old contents whole or the new ones whole, and the old ones stay as `spare` until the next
    write. Files of the user's in `folder` come along. Raises `UserError` if `size` bytes are not
    free, or if writing fails: then `folder` is what it was.
    """
    folder, new = folder.resolve(), spare(folder)
    try:
        for path in (new, aside(folder)):
            if path.exists():
                shutil.rmtree(path)
        need_room(folder.parent, size)
        new.mkdir()
        fill(new)
        sizes = {
            path.relative_to(new).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in sorted(new.rglob("*"))
            if path.is_file()
        }
        (new / MANIFEST).write_text(json.dumps(sizes, indent=1))
        if folder.exists():
            keep_users_files(folder, new)
        for path in [*new.rglob("*"), new]:
            if not path.is_symlink():
                sync(path)
        exchange(new, folder)
        sync(folder.parent)
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        # safetensors and tokenizers have errors of their own for a disk that is full.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise UserError(
            f"{folder} cannot be written: {error}; what was there before is whole: mend that, "
            f"and {GO_ON}"
        ) from error


def keep_users_files(old: Path, new: Path) -> None:
    """Copy what a user put into `old`; a model card that was edited, under a name of its own."""
    try:
        listed = json.loads((old / MANIFEST).read_text())
        edited = (old / CARD).exists() and digest(old / CARD) != listed[CARD]["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        listed, edited = {}, False
    for path in old.rglob("*"):
        to = new / path.relative_to(old)
        if edited and path == old / CARD:
            to = to.with_name(f"{CARD}.before")
        elif path.relative_to(old).as_posix() in listed:
            continue  # ours, of before
        if path.is_symlink() or (path.is_file() and not to.exists()):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to, follow_symlinks=False)


def remove(folder: Path) -> None:
    """`folder` and its copies. Renamed first: a death on the way leaves no half of it in place."""
    remove_copies(folder)
    if folder.exists():
        folder.resolve().rename(spare(folder))
        remove_copies(folder)


def remove_copies(folder: Path) -> None:
    for copy in (spare(folder), aside(folder)):
        shutil.rmtree(copy, ignore_errors=True)


def need_room(folder: Path, size: int) -> None:
    """Raises `UserError` unless `size` bytes are free there. (A quota shows only in a write.)"""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder}: a save needs {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            f"make room, and {GO_ON}"
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
            if name != CARD
            and (
                (folder / name).stat().st_size != about["bytes"]
                or digest(folder / name) != about["sha256"]
            )
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{folder}: {error}") from None
    if not listed:
        raise Damaged(f"{folder}: {MANIFEST} lists no file")
    if wrong:
        raise Damaged(f"{folder}: {wrong[0]} is not what was written")


def newest(folder: Path, wanted: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """`folder`, once it holds a whole copy that is `wanted`: its own contents, else `spare`'s,
    which then change places.

    None where nothing was ever written. Raises `UserError` if something was, but no such copy is
    left. Only one process may call this.
    """
    damage, folder = [], folder.resolve()
    new, old = spare(folder), aside(folder)
    if folder.exists() and old.exists() and not new.exists():
        old.rename(new)  # a replacement by renames that died before its last
    for path in (path for path in (folder, new, old) if path.exists()):
        try:
            verify(path)
            found = wanted(path)
        except Damaged as error:
            damage.append(str(error))
            continue
        if found and path != folder:
            if folder.exists() and damage:
                print(f"warning: {damage[0]}; using the save before it", file=sys.stderr)
            exchange(path, folder)
        if found:
            return folder
    if not folder.exists():
        return None
    why = damage[0] if damage else f"{folder}: is not the one that was asked for"
    raise UserError(
        f"{why}; no whole copy is left; restore it, or start anew with --overwrite "
        "(move best/ away before, if it is still of use)"
    )


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
        while not (holds(file) and same(path, file)):
            file = path.open("a+")
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"--output_dir {folder}: {file.read() or 'another process'} trains there; "
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
            if same(path, file):
                path.unlink()
            if made and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()  # a mistake found later leaves nothing behind


def same(path: Path, file) -> bool:
    return path.exists() and os.path.samefile(path, file.fileno())


def holds(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK):
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
    """Swap two folders in one step, so that `old` is loadable at every instant; `old` may be new.

    Linux and macOS have a call for it, Python does not. Some disks (NFS) do not take it: there it
    is three renames, and `newest` finds its way if the process dies between them.
    """
    if not old.exists():
        new.rename(old)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd = -2 if sys.platform == "darwin" else -100
    for name in ("renameat2", "renameatx_np"):  # both: (fd, path, fd, path, 2 = exchange)
        if hasattr(libc, name):
            call = getattr(libc, name)
            if call(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), 2) == 0:
                return
    old.rename(aside(old))
    new.rename(old)
    aside(old).rename(new)

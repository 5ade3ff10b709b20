"""Folders that are written whole or not at all, and verified when read: `last/` and `best/`.

In: a folder and a function that fills it. Out: the folder, replaced in one step; or a verified one.
Independent of: what is in the folder, and when to save.
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

from runtime.flags import RUN_AGAIN, UserError

MANIFEST = "manifest.json"
CARD = "README.md"  # a model card may be edited: no change of it counts as damage


class Damaged(Exception):
    """A folder that is not what was written: missing, torn, truncated or altered."""


class Busy(UserError):
    """Another process trains in a folder."""


def spare_of(folder: Path) -> Path:
    """The other copy, beside `folder`: the previous one, or the next while it is written."""
    return folder.resolve().with_name(f".{folder.resolve().name}.spare")


def aside_of(folder: Path) -> Path:
    """Where `folder` is for an instant while two renames replace it (see `exchange`)."""
    return folder.resolve().with_name(f".{folder.resolve().name}.old")


def write_folder(folder: Path, fill: Callable[[Path], None], size: int = 0) -> None:
    """Replace `folder` by one that `fill(temporary folder)` fills; it survives a power cut.

    Files are written and synced first, the manifest last, then one `exchange`. Whoever reads
    `folder` finds the old contents whole or the new ones whole, and the old ones stay beside it
    (`spare_of`) until the next write. The user's own files in `folder` are copied to the new one.
    Raises `UserError` if `size` bytes are not free, or if writing fails: then `folder` is what it
    was.
    """
    folder, new = folder.resolve(), spare_of(folder)
    try:
        for path in (new, aside_of(folder)):
            if path.exists():
                shutil.rmtree(path)
        require_room(folder.parent, size)
        new.mkdir()
        fill(new)
        write_manifest(new)
        make_readable(new)
        if folder.exists():
            keep_users_files(folder, new)
        for path in [*new.rglob("*"), new]:
            if not path.is_symlink():
                sync_to_disk(path)
        exchange(new, folder)
        sync_to_disk(folder.parent)
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        # safetensors and tokenizers have errors of their own for a full disk.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise UserError(
            f"{folder} cannot be written: {error}; what was there before is intact; remove the "
            f"cause, and {RUN_AGAIN}"
        ) from error


def write_manifest(folder: Path) -> None:
    """The size and SHA-256 of every file in `folder`, as one more file of it."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")


def make_readable(folder: Path) -> None:
    """Give all files the mode that the umask asks for: safetensors writes 0600."""
    mode = (folder / MANIFEST).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def keep_users_files(old: Path, new: Path) -> None:
    """Copy what a user put into `old`; an edited model card gets another name."""
    try:
        listed = json.loads((old / MANIFEST).read_text(encoding="utf-8"))
        edited = (old / CARD).exists() and sha256_of(old / CARD) != listed[CARD]["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        listed, edited = {}, False
    for path in old.rglob("*"):
        to = new / path.relative_to(old)
        if edited and path == old / CARD:
            to = to.with_name(f"{CARD}.before")
        elif path.relative_to(old).as_posix() in listed:
            continue  # ours, of the previous write
        if path.is_symlink() or (path.is_file() and not to.exists()):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to, follow_symlinks=False)


def remove_folder(folder: Path) -> None:
    """Remove `folder` and its copies. Renamed first: no half of it stays if the process dies."""
    remove_copies(folder)
    if folder.exists():
        folder.resolve().rename(spare_of(folder))
        remove_copies(folder)


def remove_copies(folder: Path) -> None:
    for copy in (spare_of(folder), aside_of(folder)):
        shutil.rmtree(copy, ignore_errors=True)


def require_room(folder: Path, size: int) -> None:
    """Raises `UserError` unless `size` bytes are free there. (A quota shows only in a write.)"""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder}: a save needs {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; "
            f"make room, and {RUN_AGAIN}"
        )


def verify_folder(folder: Path) -> None:
    """Raises `Damaged` unless every file of the manifest is there, with its size and checksum.

    Files beside those listed (a report, a note) do not matter.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wrong = [
            name
            for name, about in listed.items()
            if name != CARD
            and (
                (folder / name).stat().st_size != about["bytes"]
                or sha256_of(folder / name) != about["sha256"]
            )
        ]
    except FileNotFoundError as error:
        raise Damaged(f"{folder}: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{folder}: {error}") from None
    if not listed:
        raise Damaged(f"{folder}: {MANIFEST} lists no file")
    if wrong:
        raise Damaged(f"{folder}: {wrong[0]} is not what was written")


START_ANEW = (
    "restore it, or start anew with --overwrite (move best/ away before, if it is still of use)"
)


def newest_whole(
    folder: Path, wanted: Callable[[Path], bool] = lambda path: True, remedy=START_ANEW
) -> Path | None:
    """`folder`, once it holds a whole copy that is `wanted`: its own contents or the other copy's.

    None if nothing was ever written. Raises `UserError` if something was, but no such copy is left.
    Only one process may call this.
    """
    folder, damage = folder.resolve(), []
    finish_exchange(folder)
    for path in (folder, spare_of(folder), aside_of(folder)):
        if not path.exists():
            continue
        try:
            verify_folder(path)
        except Damaged as error:
            damage.append(str(error))
            continue
        if wanted(path):
            put_in_place(path, folder, damage)
            return folder
    if not folder.exists():
        return None
    why = damage[0] if damage else f"{folder}: is not the one that was asked for"
    raise UserError(f"{why}; no whole copy is left; {remedy}")


def finish_exchange(folder: Path) -> None:
    """Complete a replacement by renames (see `exchange`) that died before its last one."""
    new, old = spare_of(folder), aside_of(folder)
    if folder.exists() and old.exists() and not new.exists():
        old.rename(new)


def put_in_place(copy: Path, folder: Path, damage: list[str]) -> None:
    """Make `copy` the contents of `folder`, with a warning if those are damaged."""
    if copy == folder:
        return
    if folder.exists() and damage:
        print(f"warning: {damage[0]}; using the save before it", file=sys.stderr)
    exchange(copy, folder)


@contextlib.contextmanager
def lock_folder(folder: Path):
    """Allow one run at a time in `folder`, made if absent. Raises `UserError` if one is running.

    flock(2): the kernel releases the lock when a process ends, however it ends, so a killed run
    blocks nobody. The file is removed at the end by whoever holds the lock on it.
    """
    path = folder / ".lock"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        while not (take_lock(file) and is_same_file(path, file)):
            file = path.open("a+", encoding="utf-8")
    except BlockingIOError:
        file.seek(0)
        raise Busy(
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
            if is_same_file(path, file):
                path.unlink()
            if made and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()  # a run refused for a mistake leaves nothing behind


def is_same_file(path: Path, file) -> bool:
    return path.exists() and os.path.samefile(path, file.fileno())


def take_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK):
            raise
        print(f"warning: {file.name}: this disk has no locks; start no second run", file=sys.stderr)
    return True


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_to_disk(path: Path) -> None:
    """Make the kernel write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step, so that `old` is loadable at every instant; `old` may be new.

    Linux and macOS have a system call for it, Python does not. Some file systems (NFS) do not
    support it: there it is three renames, and `newest_whole` copes with a death between them.
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
    old.rename(aside_of(old))
    new.rename(old)
    aside_of(old).rename(new)

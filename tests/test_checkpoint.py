"""A folder is replaced whole or not at all, and what is read is what was written."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import checkpoint
from config import UserError


def fill_with(content: str):
    def fill(folder):
        (folder / "a.bin").write_bytes(content.encode() * 1000)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(content)

    return fill


def content(folder):
    return (folder / "sub" / "b.txt").read_text()


def test_a_write_that_fails_leaves_the_old_contents(tmp_path):
    """Red: `fill(folder)` in place."""
    folder = tmp_path / "last"
    checkpoint.write(folder, fill_with("old"))

    def torn(new):
        fill_with("new")(new)
        raise OSError("No space left on device")

    with pytest.raises(UserError, match=r"last cannot be written: No space.*; what was there"):
        checkpoint.write(folder, torn)
    checkpoint.verify(folder)
    assert content(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]  # and gives the room back
    checkpoint.write(folder, fill_with("newer"))
    assert content(folder) == "newer"


def test_no_room_is_said_before_a_byte_is_written(tmp_path, monkeypatch):
    """Red: `need_room` left out of write."""
    folder = tmp_path / "last"
    checkpoint.write(folder, fill_with("old"), size=10)
    free = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match="a save needs 2 MB and 1 MB are free; make room"):
        checkpoint.write(folder, lambda new: pytest.fail("began to write"), size=2 * 10**6)
    checkpoint.verify(folder)
    checkpoint.write(folder, fill_with("new"), size=10**6)
    assert content(folder) == "new"


def test_the_contents_of_before_stay_beside_the_new_ones(tmp_path):
    """Until the next write begins. Red: `shutil.rmtree(new)` after the exchange."""
    folder = tmp_path / "last"
    for text in ("one", "two", "three"):
        checkpoint.write(folder, fill_with(text))
    checkpoint.verify(checkpoint.spare(folder))
    assert [content(folder), content(checkpoint.spare(folder))] == ["three", "two"]


def test_a_users_files_in_a_replaced_folder_come_along(tmp_path):
    """A report, a note, a folder of them; what was written is replaced. Red: no keep_users_files
    in write; the same without `listed`."""
    folder = tmp_path / "best"
    checkpoint.write(folder, fill_with("one"))
    (folder / "report_test.json").write_text("mine")
    (folder / "sub" / "note.txt").write_text("mine too")
    (folder / "link").symlink_to("nowhere")

    def fill_without_sub(new):
        (new / "a.bin").write_bytes(b"two")

    for text in ("two", "three"):
        checkpoint.write(folder, fill_with(text))
        assert content(folder) == text
    checkpoint.write(folder, fill_without_sub)
    checkpoint.verify(folder)
    assert (folder / "report_test.json").read_text() == "mine"
    assert (folder / "sub" / "note.txt").read_text() == "mine too"
    assert (folder / "link").is_symlink()
    assert not (folder / "sub" / "b.txt").exists()


def test_a_model_card_may_be_edited_and_is_not_lost(tmp_path):
    """Red: verify with CARD; keep_users_files without `edited`."""

    def fill(new):
        (new / "README.md").write_text("card")
        (new / "weights").write_text("w")

    checkpoint.write(tmp_path / "best", fill)
    card = tmp_path / "best" / "README.md"
    for text in ("my card", "card", "card"):
        card.write_text(text)
        checkpoint.verify(tmp_path / "best")
        checkpoint.write(tmp_path / "best", fill)
        assert card.read_text() == "card"
        assert card.with_name("README.md.before").read_text() == "my card"


@pytest.mark.parametrize("swap", ["the system's call", "two renames"])
def test_a_folder_is_replaced_by_either_swap(tmp_path, monkeypatch, swap):
    """Red: `old.rename(aside)` without `new.rename(old)`."""
    if swap == "two renames":
        monkeypatch.setattr(checkpoint.ctypes, "CDLL", lambda *_, **__: None)
    folder = tmp_path / "best"
    for text in ("one", "two", "three"):
        checkpoint.write(folder, fill_with(text))
        checkpoint.verify(folder)
        assert content(folder) == text
    assert sorted(path.name for path in tmp_path.iterdir()) == [".best.spare", "best"]


def damage_size(folder):
    (folder / "a.bin").write_bytes(b"x")


def damage_bit(folder):
    data = bytearray((folder / "a.bin").read_bytes())
    data[5] ^= 1
    (folder / "a.bin").write_bytes(data)


DAMAGE = {
    "truncated": damage_size,
    "emptied": lambda folder: (folder / "a.bin").write_bytes(b""),
    "a flipped bit": damage_bit,
    "a missing file": lambda folder: (folder / "sub" / "b.txt").unlink(),
    "no manifest": lambda folder: (folder / checkpoint.MANIFEST).unlink(),
    "a torn manifest": lambda folder: (folder / checkpoint.MANIFEST).write_text('{"a.bin": '),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_whole_copy_beside_it_is_used(tmp_path, capsys, kind):
    """Red: verify without the digest (a flipped bit), without the size, without the manifest."""
    folder = tmp_path / "last"
    for text in ("one", "two"):
        checkpoint.write(folder, fill_with(text))
    assert content(checkpoint.newest(folder)) == "two"
    DAMAGE[kind](folder)
    with pytest.raises(checkpoint.Damaged):
        checkpoint.verify(folder)
    assert content(checkpoint.newest(folder)) == "one"  # and it lies in `folder` now, so that
    checkpoint.verify(folder)  # a next write, which begins by removing the spare, loses nothing
    assert str(folder) in capsys.readouterr().err
    DAMAGE[kind](folder)
    with pytest.raises(UserError, match="no whole copy is left"):
        checkpoint.newest(folder)


def test_the_copy_that_is_wanted_is_the_one_in_its_place(tmp_path, capsys):
    """A `best/` of a step that a kill undid gives way to the one before. Red: `newest` without
    `wanted`."""
    folder = tmp_path / "best"
    for text in ("one", "two"):
        checkpoint.write(folder, fill_with(text))
    for text in ("one", "two", "two"):
        assert (
            content(checkpoint.newest(folder, lambda path, text=text: content(path) == text))
            == text
        )
    with pytest.raises(UserError, match="is not the one that was asked for; no whole copy"):
        checkpoint.newest(folder, lambda path: False)
    assert capsys.readouterr().err == ""


def test_a_death_between_two_renames_loses_nothing(tmp_path):
    """Red: `newest` looking at the folder alone."""
    folder = tmp_path / "last"
    checkpoint.write(folder, fill_with("new"))
    folder.rename(checkpoint.spare(folder))
    assert content(checkpoint.newest(folder)) == "new"


@pytest.mark.parametrize("died_after", [1, 2, 3])
@pytest.mark.parametrize("wanted", ["one", "two", None])
def test_a_death_between_the_renames_loses_neither_copy(tmp_path, monkeypatch, died_after, wanted):
    """Where the disk cannot exchange. Red: `newest` without `aside`; without its first rename."""
    monkeypatch.setattr(checkpoint.ctypes, "CDLL", lambda *_, **__: None)
    folder = tmp_path / "best"
    checkpoint.write(folder, fill_with("one"))
    rename, calls = Path.rename, []

    def dying(self, target):
        rename(self, target)
        calls.append(target)
        if len(calls) == died_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.write(folder, fill_with("two"))
    found = checkpoint.newest(folder, lambda path: wanted in (None, content(path)))
    assert content(found) == wanted if wanted else content(found) in ("one", "two")
    checkpoint.verify(folder)
    checkpoint.write(folder, fill_with("three"))
    assert content(folder) == "three"


def test_a_folder_that_is_a_link_is_written_where_it_points(tmp_path):
    """Red: `folder.resolve()` left out of write."""
    (tmp_path / "disk" / "x").mkdir(parents=True)
    (tmp_path / "last").symlink_to(tmp_path / "disk" / "x")
    for text in ("one", "two", "three"):
        checkpoint.write(tmp_path / "last", fill_with(text))
    assert content(tmp_path / "disk" / "x") == "three"
    assert content(checkpoint.newest(tmp_path / "last")) == "three"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [".x.spare", "x"]


def test_nothing_written_is_no_error_and_files_beside_the_listed_do_not_matter(tmp_path):
    """Red: verify comparing the list of files."""
    assert checkpoint.newest(tmp_path / "last") is None
    checkpoint.write(tmp_path / "last", fill_with("x"))
    (tmp_path / "last" / "report_test.json").write_text("{}")
    checkpoint.verify(tmp_path / "last")


# ---------------------------------------------------------------- a second launch


def holder(folder, seconds=30) -> subprocess.Popen:
    """Another process that holds the lock."""
    code = (
        "import checkpoint, pathlib, sys, time\n"
        f"with checkpoint.lock(pathlib.Path({str(folder)!r})):\n"
        f"    print('held', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_its_kill(tmp_path):
    """Red: LOCK_NB without LOCK_EX; a lock that is a file's mere existence."""
    folder = tmp_path / "run"
    with holder(folder) as first:
        with pytest.raises(UserError, match=f"process {first.pid} on .* trains there; give"):
            checkpoint.lock(folder).__enter__()
        first.kill()
    assert (folder / ".lock").exists()
    with checkpoint.lock(folder), pytest.raises(UserError, match="trains there"):
        checkpoint.lock(folder).__enter__()
    with checkpoint.lock(folder):
        pass
    assert not (folder / ".lock").exists()


def test_a_folder_that_a_mistake_left_empty_goes_again_and_a_used_one_stays(tmp_path):
    """Red: no rmdir in lock; rmdir of a folder that was there before."""
    there = tmp_path / "there"
    there.mkdir()
    for folder in (tmp_path / "new", there):
        with checkpoint.lock(folder):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with checkpoint.lock(tmp_path / "used"):
        (tmp_path / "used" / "last").mkdir()
    assert (tmp_path / "used").exists()


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    """Red: neither ENOTSUP nor EOPNOTSUPP (one number on Linux) in holds."""

    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(checkpoint.fcntl, "flock", flock)
    with checkpoint.lock(tmp_path / "run"):
        assert "this disk has no locks" in capsys.readouterr().err

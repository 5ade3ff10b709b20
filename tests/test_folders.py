"""A folder is replaced whole or not at all, and what is read is what was written."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime import folders
from runtime.flags import UserError


def fill_with(content: str):
    def fill(folder):
        (folder / "a.bin").write_bytes(content.encode() * 1000)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(content)

    return fill


def content(folder):
    return (folder / "sub" / "b.txt").read_text()


def test_a_write_that_fails_leaves_the_old_contents(tmp_path):
    """Red: `fill(folder)` for `fill(new)` in write_folder."""
    folder = tmp_path / "last"
    folders.write_folder(folder, fill_with("old"))

    def torn(new):
        fill_with("new")(new)
        raise OSError("No space left on device")

    with pytest.raises(UserError, match=r"last cannot be written: No space.*; what was there"):
        folders.write_folder(folder, torn)
    folders.verify_folder(folder)
    assert content(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]  # and gives the room back
    folders.write_folder(folder, fill_with("newer"))
    assert content(folder) == "newer"


def test_no_room_is_said_before_a_byte_is_written(tmp_path, monkeypatch):
    """Red: `require_room` left out of write_folder."""
    folder = tmp_path / "last"
    folders.write_folder(folder, fill_with("old"), size=10)
    free = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match="a save needs 2 MB and 1 MB are free; make room"):
        folders.write_folder(folder, lambda new: pytest.fail("began to write"), size=2 * 10**6)
    folders.verify_folder(folder)
    folders.write_folder(folder, fill_with("new"), size=10**6)
    assert content(folder) == "new"


def test_the_contents_of_before_stay_beside_the_new_ones(tmp_path):
    """Until the next write begins. Red: `shutil.rmtree(new)` after `exchange` in write_folder."""
    folder = tmp_path / "last"
    for text in ("one", "two", "three"):
        folders.write_folder(folder, fill_with(text))
    folders.verify_folder(folders.spare_of(folder))
    assert [content(folder), content(folders.spare_of(folder))] == ["three", "two"]


def test_a_users_files_in_a_replaced_folder_come_along(tmp_path):
    """A report, a note, a folder of them; what was written is replaced. Red: no keep_users_files
    in write_folder; keep_users_files without `listed`."""
    folder = tmp_path / "best"
    folders.write_folder(folder, fill_with("one"))
    (folder / "report_test.json").write_text("mine")
    (folder / "sub" / "note.txt").write_text("mine too")
    (folder / "link").symlink_to("nowhere")

    def fill_without_sub(new):
        (new / "a.bin").write_bytes(b"two")

    for text in ("two", "three"):
        folders.write_folder(folder, fill_with(text))
        assert content(folder) == text
    folders.write_folder(folder, fill_without_sub)
    folders.verify_folder(folder)
    assert (folder / "report_test.json").read_text() == "mine"
    assert (folder / "sub" / "note.txt").read_text() == "mine too"
    assert (folder / "link").is_symlink()
    assert not (folder / "sub" / "b.txt").exists()


def test_a_model_card_may_be_edited_and_is_not_lost(tmp_path):
    """Red: verify_folder that checks CARD, too; keep_users_files without `edited`."""

    def fill(new):
        (new / "README.md").write_text("card")
        (new / "weights").write_text("w")

    folders.write_folder(tmp_path / "best", fill)
    card = tmp_path / "best" / "README.md"
    for text in ("my card", "card", "card"):
        card.write_text(text)
        folders.verify_folder(tmp_path / "best")
        folders.write_folder(tmp_path / "best", fill)
        assert card.read_text() == "card"
        assert card.with_name("README.md.before").read_text() == "my card"


@pytest.mark.parametrize("swap", ["the system's call", "two renames"])
def test_a_folder_is_replaced_by_either_swap(tmp_path, monkeypatch, swap):
    """Red: exchange with `old.rename(aside_of(old))` and without `new.rename(old)`."""
    if swap == "two renames":
        monkeypatch.setattr(folders.ctypes, "CDLL", lambda *_, **__: None)
    folder = tmp_path / "best"
    for text in ("one", "two", "three"):
        folders.write_folder(folder, fill_with(text))
        folders.verify_folder(folder)
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
    "no manifest": lambda folder: (folder / folders.MANIFEST).unlink(),
    "a torn manifest": lambda folder: (folder / folders.MANIFEST).write_text('{"a.bin": '),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_whole_copy_beside_it_is_used(tmp_path, capsys, kind):
    """Red: verify_folder without sha256_of (a flipped bit), the size or the manifest."""
    folder = tmp_path / "last"
    for text in ("one", "two"):
        folders.write_folder(folder, fill_with(text))
    assert content(folders.newest_whole(folder)) == "two"
    DAMAGE[kind](folder)
    with pytest.raises(folders.Damaged):
        folders.verify_folder(folder)
    assert content(folders.newest_whole(folder)) == "one"  # and it lies in `folder` now, so that
    folders.verify_folder(folder)  # a next write, which begins by removing the spare, loses nothing
    assert str(folder) in capsys.readouterr().err
    DAMAGE[kind](folder)
    with pytest.raises(UserError, match="no whole copy is left"):
        folders.newest_whole(folder)


def test_the_copy_that_is_wanted_is_the_one_in_its_place(tmp_path, capsys):
    """A `best/` of a step that a kill undid gives way to the one before. Red: newest_whole without
    `wanted`."""
    folder = tmp_path / "best"
    for text in ("one", "two"):
        folders.write_folder(folder, fill_with(text))
    for text in ("one", "two", "two"):
        assert (
            content(folders.newest_whole(folder, lambda path, text=text: content(path) == text))
            == text
        )
    with pytest.raises(UserError, match="is not the one that was asked for; no whole copy"):
        folders.newest_whole(folder, lambda path: False)
    assert capsys.readouterr().err == ""


def test_a_death_between_two_renames_loses_nothing(tmp_path):
    """Red: newest_whole that looks at `folder` alone."""
    folder = tmp_path / "last"
    folders.write_folder(folder, fill_with("new"))
    folder.rename(folders.spare_of(folder))
    assert content(folders.newest_whole(folder)) == "new"


@pytest.mark.parametrize("died_after", [1, 2, 3])
@pytest.mark.parametrize("wanted", ["one", "two", None])
def test_a_death_between_the_renames_loses_neither_copy(tmp_path, monkeypatch, died_after, wanted):
    """Where the disk cannot exchange. Red: newest_whole without aside_of; finish_exchange without
    its rename."""
    monkeypatch.setattr(folders.ctypes, "CDLL", lambda *_, **__: None)
    folder = tmp_path / "best"
    folders.write_folder(folder, fill_with("one"))
    rename, calls = Path.rename, []

    def dying(self, target):
        rename(self, target)
        calls.append(target)
        if len(calls) == died_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            folders.write_folder(folder, fill_with("two"))
    found = folders.newest_whole(folder, lambda path: wanted in (None, content(path)))
    assert content(found) == wanted if wanted else content(found) in ("one", "two")
    folders.verify_folder(folder)
    folders.write_folder(folder, fill_with("three"))
    assert content(folder) == "three"


def test_a_folder_that_is_a_link_is_written_where_it_points(tmp_path):
    """Red: `folder.resolve()` left out of write_folder."""
    (tmp_path / "disk" / "x").mkdir(parents=True)
    (tmp_path / "last").symlink_to(tmp_path / "disk" / "x")
    for text in ("one", "two", "three"):
        folders.write_folder(tmp_path / "last", fill_with(text))
    assert content(tmp_path / "disk" / "x") == "three"
    assert content(folders.newest_whole(tmp_path / "last")) == "three"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [".x.spare", "x"]


def test_nothing_written_is_no_error_and_files_beside_the_listed_do_not_matter(tmp_path):
    """Red: verify_folder that compares the list of files."""
    assert folders.newest_whole(tmp_path / "last") is None
    folders.write_folder(tmp_path / "last", fill_with("x"))
    (tmp_path / "last" / "report_test.json").write_text("{}")
    folders.verify_folder(tmp_path / "last")


# ---------------------------------------------------------------- a second launch


def holder(folder, seconds=30) -> subprocess.Popen:
    """Another process that holds the lock."""
    code = (
        "import pathlib, time\n"
        "from runtime import folders\n"
        f"with folders.lock_folder(pathlib.Path({str(folder)!r})):\n"
        f"    print('held', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_its_kill(tmp_path):
    """Red: take_lock without LOCK_EX; a lock that is a file's mere existence."""
    folder = tmp_path / "run"
    with holder(folder) as first:
        with pytest.raises(UserError, match=f"process {first.pid} on .* trains there; give"):
            folders.lock_folder(folder).__enter__()
        first.kill()
    assert (folder / ".lock").exists()
    with folders.lock_folder(folder), pytest.raises(UserError, match="trains there"):
        folders.lock_folder(folder).__enter__()
    with folders.lock_folder(folder):
        pass
    assert not (folder / ".lock").exists()


def test_a_folder_that_a_mistake_left_empty_goes_again_and_a_used_one_stays(tmp_path):
    """Red: no rmdir in lock_folder; rmdir of a folder that was there before."""
    there = tmp_path / "there"
    there.mkdir()
    for folder in (tmp_path / "new", there):
        with folders.lock_folder(folder):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with folders.lock_folder(tmp_path / "used"):
        (tmp_path / "used" / "last").mkdir()
    assert (tmp_path / "used").exists()


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    """Red: neither ENOTSUP nor EOPNOTSUPP (one number on Linux) in take_lock."""

    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(folders.fcntl, "flock", flock)
    with folders.lock_folder(tmp_path / "run"):
        assert "this disk has no locks" in capsys.readouterr().err

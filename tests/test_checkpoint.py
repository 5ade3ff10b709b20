"""A folder is replaced whole or not at all, and what is read is what was written."""

import shutil

import pytest

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

    with pytest.raises(OSError, match="No space"):
        checkpoint.write(folder, torn)
    checkpoint.verify(folder)
    assert content(folder) == "old"
    checkpoint.write(folder, fill_with("newer"))  # what the torn one left does not stand in the way
    assert content(folder) == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


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
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


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
    folder, spare = tmp_path / "last", tmp_path / ".last.new"
    checkpoint.write(folder, fill_with("text"))
    assert checkpoint.newest(folder) == folder
    shutil.copytree(folder, spare)
    DAMAGE[kind](folder)
    with pytest.raises(checkpoint.Damaged):
        checkpoint.verify(folder)
    assert checkpoint.newest(folder) == spare
    assert str(folder) in capsys.readouterr().err
    shutil.rmtree(spare)
    with pytest.raises(UserError, match="no whole copy is left"):
        checkpoint.newest(folder)


def test_a_death_between_two_renames_loses_nothing(tmp_path):
    """Red: `newest` looking at the folder alone."""
    folder = tmp_path / "last"
    checkpoint.write(folder, fill_with("new"))
    folder.rename(tmp_path / ".last.new")
    assert content(checkpoint.newest(folder)) == "new"


def test_nothing_written_is_no_error_and_files_beside_the_listed_do_not_matter(tmp_path):
    """Red: verify comparing the list of files."""
    assert checkpoint.newest(tmp_path / "last") is None
    checkpoint.write(tmp_path / "last", fill_with("x"))
    (tmp_path / "last" / "report_test.json").write_text("{}")
    checkpoint.verify(tmp_path / "last")

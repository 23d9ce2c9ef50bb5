"""A folder in the user's cache is whole or not there, and what is in its way is one line."""

import errno

import pytest

from unrefuse.errors import UnrefuseError
from unrefuse.models.cache import cached


def fill(folder):
    (folder / "x").write_text("x")


def test_a_folder_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        folder = cached("a", 1, lambda new: made.append(fill(new)), tmp_path / "cache")
    assert (folder / "x").read_text() == "x"
    assert len(made) == 1
    assert [f.name for f in folder.parent.iterdir()] == ["a"]


def full(folder):
    fill(folder)
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cache_that_cannot_be_written_or_has_no_room_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for cache, size, make, told in (
        (tmp_path / "file" / "cache", 1, fill, "Not a directory"),
        (tmp_path / "cache", 2**60, fill, "no space in .*cache: 1099511627776 MiB are needed"),
        (tmp_path / "cache", 1, full, "No space left"),
    ):
        with pytest.raises(UnrefuseError, match=f"{told}.*XDG_CACHE_HOME"):
            cached("a", size, make, cache)
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_process_that_was_faster_is_no_fault(tmp_path):
    def late(new):
        fill(new)
        (tmp_path / "a").mkdir()
        fill(tmp_path / "a")

    assert cached("a", 1, late, tmp_path) == tmp_path / "a"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]

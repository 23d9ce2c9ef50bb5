import pytest

from unrefuse.errors import UsageError
from unrefuse.save import Discard, new_folder


def test_the_folder_appears_at_the_end_only(tmp_path):
    out = tmp_path / "a b" / "out"
    with new_folder(out) as folder:
        (folder / "x").write_text("1")
        assert not out.exists()
    assert (out / "x").read_text() == "1"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Discard])
def test_nothing_is_left_after_an_exception(tmp_path, error):
    def write():
        with new_folder(tmp_path / "out") as folder:
            (folder / "x").write_text("1")
            raise error

    if error is Discard:
        write()
    else:
        with pytest.raises(error):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_and_no_space(tmp_path):
    (tmp_path / "x").write_text("1")
    with pytest.raises(UsageError, match="not an empty folder"), new_folder(tmp_path):
        pass
    with pytest.raises(UsageError, match="no space"), new_folder(tmp_path / "out", 2**60):
        pass
    with pytest.raises(UsageError, match="cannot write"), new_folder(tmp_path / "x" / "out"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["x"]

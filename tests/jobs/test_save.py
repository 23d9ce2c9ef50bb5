import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unrefuse.errors import UnrefuseError
from unrefuse.jobs.save import Discard, check_out, check_writable, new_file, new_folder


def fill(out, size=0):
    with new_folder(out, size) as folder:
        (folder / "sub").mkdir()
        for name in ("x", "config.json", "sub/y"):
            (folder / name).write_text("1")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_folder_appears_at_the_end_only(tmp_path):
    out = tmp_path / "a b" / "out"
    with new_folder(out) as folder:
        (folder / "x").write_text("1")
        assert not out.parent.exists()
    assert (out / "x").read_text() == "1"
    assert names(tmp_path) == ["a b"]
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode == tmp_path.joinpath("a b").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Discard])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_left_after_an_exception(tmp_path, error, there):
    out = tmp_path / "a" / "out"
    if there:
        out.mkdir(parents=True)

    def write():
        with new_folder(out) as folder:
            (folder / "x").write_text("1")
            raise error

    if error is Discard:
        write()
    else:
        with pytest.raises(error):
            write()
    assert [p for p in tmp_path.rglob("*") if p not in (out, out.parent)] == []


def test_an_empty_folder_is_filled_in_place_and_keeps_its_rights(tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    (out / "lost+found").mkdir()  # of an empty disk
    was = out.stat()
    fill(out)
    assert names(out) == ["config.json", "lost+found", "sub", "x"]
    assert (out.stat().st_ino, out.stat().st_mode) == (was.st_ino, was.st_mode)
    assert (out / "sub" / "y").read_text() == "1"


def test_links_the_current_folder_and_home(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["config.json", "sub", "x"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fill(Path())
    assert (tmp_path / "here" / "x").exists()
    fill(Path("../there/../beside"))
    assert (tmp_path / "beside" / "x").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(Path("~/at home"))
    assert (tmp_path / "at home" / "x").exists()


def paths(folder):
    (folder / "file").write_text("1")
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("1")
    (folder / "dangling").symlink_to("/no/such/disk")
    (folder / "ring").symlink_to("ring")
    return {
        "full": "exists and is not an empty folder",
        "file": "exists and is not an empty folder",
        "file/out": "is a file",
        "file/a/b": "is a file",
        "dangling": "is a link to /no/such/disk, which does not exist",
        "dangling/out": "is a link to /no/such/disk, which does not exist",
        "ring": "ring",
        "n" * 300: "File name too long",
        "a\0b": "null",
    }


def test_what_cannot_be_written_is_said_before_the_start(tmp_path):
    wanted = paths(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for path, told in wanted.items():
        with pytest.raises(UnrefuseError, match=re.escape(told)):
            check_out(tmp_path / path)
        if path != "full":
            with pytest.raises(UnrefuseError), new_file(tmp_path / path):
                pass
    for size, told in ((2**60, "no space"), (0, "of nobody|determine home")):
        path = tmp_path / "out" if size else Path("~nobody of this name/out")
        with pytest.raises(UnrefuseError, match=told):
            check_writable(path, size)
    assert sorted(tmp_path.rglob("*")) == before


MOUNTED = """
set -e
cd "$1"; mkdir mnt ro small
mount -t tmpfs none mnt; mount -t tmpfs -o ro none ro; mount -t tmpfs -o size=64k none small
mkdir bind; mount --bind bind bind
shift
"$@"
"""
IN_MOUNTS = """
from pathlib import Path
from tests.jobs.test_save import fill
from unrefuse.errors import UnrefuseError
for out in ("mnt", "bind", "mnt/no", "ro", "ro/x", "small/x"):
    size = {"mnt/no": 2**60, "small/x": 2**20}.get(out, 0)
    try:
        fill(Path(out), size)
        print(out, (Path(out) / "sub" / "y").read_text())
    except UnrefuseError as error:
        print(error)
"""


def test_mount_points_and_disks_that_are_full_or_read_only(tmp_path):
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = [*unshare, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(mount, check=False).returncode:
        pytest.skip("no user namespaces here")
    path = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [*unshare, "bash", "-c", MOUNTED, "bash", str(tmp_path), sys.executable, "-c", IN_MOUNTS],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["mnt 1", "bind 1"]
    assert [told.split(":")[1].strip() for told in lines[3:5]] == ["Read-only file system"] * 2
    assert lines[2].startswith("no space for mnt/no")
    assert lines[5].startswith("no space for small/x: 1 MiB are needed, 0 free")


def fill_beside_another(out):
    with new_folder(out) as folder:
        (folder / "x").write_text("mine")
        out.mkdir(exist_ok=True)
        (out / "x").write_text("another's")


def test_what_is_finished_is_kept_where_its_place_is_taken_meanwhile(tmp_path):
    for out in (tmp_path / "new", tmp_path / "there"):
        if out.name == "there":
            out.mkdir()
        with pytest.raises(UnrefuseError, match="the finished work is in") as told:
            fill_beside_another(out)
        assert (out / "x").read_text() == "another's"
        assert (Path(str(told.value).split(" is in ")[1]) / "x").read_text() == "mine"


def test_a_file_appears_whole_and_replaces_only_where_it_may(tmp_path):
    file = tmp_path / "a" / "x.png"
    with new_file(file) as new:
        assert new.suffix == ".png"
        new.write_text("1")
        assert not file.exists()
    with pytest.raises(UnrefuseError, match="exists: name another file"), new_file(file):
        pass
    (tmp_path / "link.png").symlink_to(file)
    with new_file(tmp_path / "link.png", replace=True) as new:
        new.write_text("2")
    assert file.read_text() == "2"
    with pytest.raises(TypeError), new_file(file, replace=True) as new:
        new.write_text(3)
    assert file.read_text() == "2"
    assert names(tmp_path / "a") == ["x.png"]

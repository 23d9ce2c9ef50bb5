"""What the edit on disk writes: the same bytes as in memory, and no others."""

import os
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico
from tests.edits.plans import KINDS, edit_model, one_direction
from unrefuse.edits.disk import copying, shards
from unrefuse.edits.disk.copying import head_start
from unrefuse.edits.disk.header import fingerprint
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.plan import MatrixEdit
from unrefuse.edits.weights import edit_tensor
from unrefuse.errors import UnrefuseError
from unrefuse.models.header import read_header


def sharded(folder, dtype=torch.bfloat16, make=one_direction):
    network = pico.network().to(dtype)
    network.save_pretrained(folder, max_shard_size="20KB")
    return network, make(network)


@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", KINDS)
def test_the_bytes_are_those_of_the_edit_in_memory(tmp_path, make, dtype, preserve_norm):
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    network, plan = sharded(source, dtype, make)
    assert write_checkpoint(source, plan, out, preserve_norm) == dtype
    edit_model(network, plan, preserve_norm)
    wanted = network.state_dict()
    files = sorted(source.glob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        for name, tensor in load_file(out / file.name).items():
            assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("kernel_copies", [True, False])
def test_bytes_outside_of_changed_tensors_are_the_same(tmp_path, monkeypatch, kernel_copies):
    if not kernel_copies:  # as on macOS, and across file systems

        def refused(*args):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refused)
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    _, plan = sharded(source)
    monkeypatch.setattr(shards, "CHUNK", 1000)
    write_checkpoint(source, plan, out)
    changed = {f"{edit.module}.weight" for edit in plan}
    for file in source.glob("*.safetensors"):
        old, new = (bytearray((folder / file.name).read_bytes()) for folder in (source, out))
        assert len(old) == len(new)
        for name, stored in read_header(file).items():
            if name in changed:
                assert old[stored.begin : stored.end] != new[stored.begin : stored.end]
                old[stored.begin : stored.end] = new[stored.begin : stored.end]
        assert old == new


@pytest.mark.parametrize("chunks", [0, 7, 10**6])
def test_a_head_start_leaves_the_bytes_as_they_would_be(tmp_path, monkeypatch, chunks):
    source, out, alone = tmp_path / "m", tmp_path / "out", tmp_path / "alone"
    _, plan = sharded(source)
    out.mkdir()
    alone.mkdir()
    write_checkpoint(source, plan, alone)
    monkeypatch.setattr(copying, "CHUNK", 1000)
    monkeypatch.setattr(copying, "WORKERS", 1)
    copy, calls = copying.copy_bytes, []
    reached, bound = threading.Event(), threading.Event()

    def counted(*args):
        calls.append(args)
        if len(calls) > chunks:  # stop is asked for while this chunk is copied
            reached.set()
            assert bound.wait(10)
            assert begun._stopped.wait(10)
        copy(*args)

    monkeypatch.setattr(copying, "copy_bytes", counted)
    files = sorted(source.glob("*.safetensors"))
    with head_start(source, files, out) as begun:
        bound.set()
        if chunks < 10**6:
            assert reached.wait(10)
        else:
            for job in begun._jobs.values():
                job.result()
        copied = begun.stop()
    whole = [file for file in files if copied.get(file) == file.stat().st_size]
    assert (len(whole) == len(files)) == (chunks == 10**6)
    write_checkpoint(source, plan, out, copied=copied)
    assert [f.name for f in sorted(out.iterdir())] == [f.name for f in sorted(alone.iterdir())]
    assert all((out / f.name).read_bytes() == f.read_bytes() for f in alone.iterdir())


def test_fused_experts_are_edited_one_matrix_at_a_time(tmp_path):
    source, out, target = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    tensors = {"down": torch.randn(3, 8, 300), "across": torch.randn(3, 300, 8)}
    save_file(tensors, source)
    target.write_bytes(source.read_bytes())
    basis = torch.linalg.qr(torch.randn(8, 2))[0]
    edit = MatrixEdit("m", basis, basis.T, of_output=True)
    edits = {"down": (edit, 1), "across": (edit, 2)}
    jobs = list(
        shards._edits(
            source, target, read_header(source), edits, 0, False, "cpu", threading.local()
        )
    )
    assert len(jobs) == 6
    for job in jobs:
        job()
    for name, tensor in load_file(target).items():
        assert torch.equal(tensor, edit_tensor(tensors[name], *edits[name]))
    assert not out.exists()


def test_links_share_what_does_not_change_and_nothing_else(tmp_path):
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    _, plan = sharded(source)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    write_checkpoint(source, plan, out, link=True)
    shared = {file.name for file in out.iterdir() if file.samefile(source / file.name)}
    assert "config.json" in shared
    assert any(name.endswith(".safetensors") for name in shared)
    for file in out.glob("*.safetensors"):
        holds = {f"{edit.module}.weight" for edit in plan} & read_header(file).keys()
        assert (file.name in shared) == (not holds)
    assert before == {file.name: file.read_bytes() for file in source.iterdir()}


def test_quantised_weights_and_another_width_are_told_before_anything_is_written(tmp_path):
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    _, plan = sharded(source)
    wide = (MatrixEdit(plan[0].module, torch.ones(64, 1), torch.ones(1, 64), of_output=True),)
    with pytest.raises(UnrefuseError, match=r"another model: it writes 64 numbers.* writes 32"):
        write_checkpoint(source, wide, out)
    for file in source.glob("*.safetensors"):
        tensors = {n: t.to(torch.float8_e4m3fn) for n, t in load_file(file).items()}
        save_file(tensors, file)
    with pytest.raises(UnrefuseError, match=r"stored as F8_E4M3.* full weights"):
        write_checkpoint(source, plan, out)
    assert list(out.iterdir()) == []


def test_a_fingerprint_is_of_the_weights_and_not_of_the_shards(tmp_path):
    network, _ = sharded(tmp_path / "a")
    network.save_pretrained(tmp_path / "b")
    one, other = (sorted((tmp_path / d).glob("*.safetensors")) for d in "ab")
    assert len(one) != len(other)
    assert fingerprint(one) == fingerprint(other)
    name, tensor = next(iter(load_file(other[0]).items()))
    save_file(load_file(other[0]) | {name: tensor + 1}, other[0])
    assert fingerprint(one) != fingerprint(other)

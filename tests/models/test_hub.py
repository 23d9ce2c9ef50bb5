"""A hub that stops half-way: the cache and the output are whole or absent, one line tells it, and
the next call goes on."""

import json

import pytest
from huggingface_hub import constants

from tests import hub as hubs
from tests import pico
from tests.command import unrefuse
from tests.edits.plans import save_measured, selective
from unrefuse.edits.difference import difference
from unrefuse.jobs.save import apply_plan

NAME, WEIGHTS = "org/tiny", "model-00002-of-00003.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hubs.serving(monkeypatch) as served:
        yield served


@pytest.fixture
def published(hub, tmp_path):
    """A model that lies here and on the hub, with a measured edit of it."""
    model, run = pico.save(tmp_path / "m", max_shard_size="60KB"), tmp_path / "run"
    save_measured(selective(pico.network()), run / "tuning" / "plan.safetensors", model)
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    assert WEIGHTS in files
    beside = {"onnx/model.onnx": b"a second copy", ".gitattributes": b"*.bin filter=lfs"}
    hub.repos[NAME] = hubs.stored(files | beside)
    return model, run


def asked(hub):
    """The files that the hub was asked for, and forgets that it was."""
    names = [path.rpartition("/")[2] for method, path in hub.calls
             if method == "GET" and "/resolve/" in path]  # fmt: skip
    hub.calls.clear()
    return names


def in_cache(tmp_path):
    return sorted(file.name for file in (tmp_path / "cache").rglob("*.safetensors"))


def is_one_line(done, *told):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert all(part in line for part in ("unrefuse: ", *told)), line


@pytest.mark.parametrize("wrong", ["half", "drop", 403])
def test_a_hub_that_stops_half_way(hub, published, tmp_path, wrong):
    model, run = published
    hub.fail = lambda method, path: wrong if WEIGHTS in path and method == "GET" else None
    out = tmp_path / "out"
    is_one_line(unrefuse("apply", run, NAME, "--out", out), NAME)
    assert not out.exists()
    assert in_cache(tmp_path) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 3)]
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    asked(hub)

    hub.fail = lambda method, path: "drop"  # gone
    is_one_line(unrefuse("apply", run, NAME, "--out", out), NAME)
    assert not out.exists()

    hub.fail = lambda method, path: None
    hub.calls.clear()
    done = unrefuse("apply", run, NAME, "--out", out)
    assert done.returncode == 0, done.stderr
    assert asked(hub) == [WEIGHTS]
    apply_plan(run, pico.run_config(str(model), out=tmp_path / "local"))
    assert not difference(out, tmp_path / "local").changed


def test_a_line_that_breaks_once_is_taken_up_again(hub, published, tmp_path):
    broken = []

    def once(method, path):
        if WEIGHTS in path and method == "GET" and not broken:
            broken.append(path)
            return "half"
        return None

    hub.fail = once
    _, run = published
    assert unrefuse("apply", run, NAME, "--out", tmp_path / "out").returncode == 0
    assert asked(hub).count(WEIGHTS) == 2


def test_a_model_that_is_here_whole_is_not_looked_up_by_doctor(hub, published, tmp_path):
    _, run = published
    assert unrefuse("apply", run, NAME, "--out", tmp_path / "out").returncode == 0
    hub.calls.clear()
    done = unrefuse("doctor", NAME, "--json")
    assert done.returncode == 0, done.stdout
    assert hub.calls == []
    assert str(tmp_path / "cache") in json.loads(done.stdout)["model"]["folder"]

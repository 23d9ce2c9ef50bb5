"""`unrefuse doctor` on this machine, on tiny models, and on machines that lack something."""

import json
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

from tests import pico
from tests.command import unrefuse
from unrefuse.config import RunConfig
from unrefuse.edits.disk.header import read_header
from unrefuse.jobs import doctor
from unrefuse.jobs.doctor import examine


def test_this_machine_has_no_faults():
    found = examine()
    assert found.faults == []
    assert found.machine["memory"] > 2**30
    assert found.devices[-1]["device"] == "cpu"
    assert found.versions["torch"] == torch.__version__


def test_a_current_folder_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert examine().machine["free_disk"] > 0


def test_a_model_and_an_output(tmp_path):
    folder = pico.save(tmp_path / "m")
    found = examine(RunConfig(model=str(folder)), tmp_path / "out")
    assert found.faults == []
    assert found.model["architecture"] == "llama"
    assert found.model["known"] is True
    assert found.model["parameters"] == pico.network().num_parameters()
    assert [mode.fits for mode in found.modes] == [True] * len(found.modes)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def spoil_shard(folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 100)


def quantise(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_shard, "truncated or damaged"),
        (quantise, "`unrefuse edit --dequantize` makes"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_a_model_that_cannot_be_edited(tmp_path, spoil, told):
    folder = pico.save(tmp_path / "m")
    spoil(folder)
    found = examine(RunConfig(model=str(folder)), folder / "model.safetensors" / "x")
    assert len(found.faults) == 2  # the model's, and that the output lies in a file
    assert told in found.faults[0]
    assert "is a file" in found.faults[1]


def test_a_device_that_is_not_there_and_no_model(tmp_path):
    folder = pico.save(tmp_path / "m")
    assert "no device 'cuda:7'" in examine(RunConfig(model=str(folder), device="cuda:7")).faults[0]
    assert "no such folder" in examine(RunConfig(model="/no/such/folder")).faults[0]


def test_a_model_of_the_hub_is_not_downloaded(tmp_path, monkeypatch):
    """The hub's answer is made of a real file's header."""
    folder = pico.save(tmp_path / "m")
    header = read_header(folder / "model.safetensors")
    tensors = {
        name: TensorInfo(dtype=t.dtype, shape=list(t.shape), data_offsets=(t.begin, t.end))
        for name, t in header.items()
    }
    answer = SafetensorsRepoMetadata(
        metadata=None,
        sharded=False,
        weight_map=dict.fromkeys(tensors, "model.safetensors"),
        files_metadata={"model.safetensors": SafetensorsFileMetadata({}, tensors)},
    )
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *_, **__: answer)
    found = examine(RunConfig(model="no-such-user/no-such-model"))
    assert found.faults == []
    assert found.model["folder"] is None
    assert found.model["parameters"] == pico.network().num_parameters()
    assert found.model["stored"] == 4 * found.model["parameters"]


def test_what_is_not_installed_is_named_with_how_to_get_it(monkeypatch):
    needs = ["no-such-package>=1", "torch>=99", "numpy; python_version < '3'", "x; extra == 'y'"]
    monkeypatch.setattr(doctor, "requires", lambda name: needs)
    monkeypatch.setitem(sys.modules, "torch", None)
    faults = examine().faults
    assert faults[0] == "no-such-package is not installed: pip install 'no-such-package>=1'"
    assert "torch 2" in faults[1]
    assert "pip install 'torch>=99'" in faults[1]
    assert "torch cannot be loaded" in faults[2]
    assert len(faults) == 3


def test_a_card_that_torch_was_not_built_for(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "torch has no CUDA" in doctor._without_card([{}])[0]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver" in doctor._without_card([{}])[0]
    assert doctor._without_card([{}, {}]) == []


def test_the_command(tmp_path):
    folder = pico.save(tmp_path / "m")
    shown = json.loads(unrefuse("doctor", folder, "--json").stdout)
    assert {"machine", "devices", "versions", "missing", "model", "modes", "faults"} == set(shown)
    assert all(mode["fits"] for mode in shown["modes"])
    done = unrefuse("doctor", folder, "--out", tmp_path)
    assert done.returncode == 2
    out = done.stdout
    assert "--stream" in out
    assert "fault: " in out
    assert "not an empty folder" in out

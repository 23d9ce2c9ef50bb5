"""What a model needs, told from its files alone, against the loaded model."""

import pytest
import torch

from tests import pico
from unrefuse.errors import UnrefuseError
from unrefuse.models import fit, load
from unrefuse.models.checkpoint import checkpoint_tensors
from unrefuse.models.fit import Size, run_modes, size_of
from unrefuse.models.load import load_model
from unrefuse.models.stream import _matrices
from unrefuse.models.writers import blocks


def shapes(folder):
    return {n: t.shape for file in checkpoint_tensors(folder).values() for n, t in file.items()}


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gemma3", "falcon_h1"])
def test_the_size_is_that_of_the_network(tmp_path, model_type):
    size = size_of(shapes(pico.save(tmp_path / "m", model_type, max_shard_size="20KB")), 7)
    network = pico.network(model_type)
    held = [sum(matrix.numel() for *_, matrix in _matrices(block)) for block in blocks(network)]
    assert size.numbers == network.num_parameters()
    assert (size.streamed, size.largest_block, size.stored) == (sum(held), max(held), 7)


def test_a_model_without_blocks_has_a_size():
    assert size_of({"head": (3, 4), "norm.0.weight": (5,)}, 0) == Size(17, 0, 0, 0)


def test_the_ways_by_what_is_free(monkeypatch):
    free = {"cuda": 100, "cpu": 250}
    monkeypatch.setattr(fit, "free_memory", lambda device: free[device.type])
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    size = Size(numbers=150, largest_block=10, streamed=120, stored=300)
    modes = run_modes(size, torch.bfloat16, torch.device("cuda"), disk=2**24 + 299)
    assert [(mode.option, mode.needed, mode.fits) for mode in modes] == [
        ("", 300, False),
        ("--device-map auto", 300, True),  # 100 + 100 + 250
        ("--stream", 100, True),
        ("unrefuse apply", 2**24 + 300, False),
    ]
    assert "--device-map auto" not in {
        mode.option for mode in run_modes(size, torch.bfloat16, torch.device("cpu"), 0)
    }


def test_what_is_said_to_fit_is_what_loads(tmp_path, monkeypatch):
    folder = pico.save(tmp_path / "m")
    numbers = size_of(shapes(folder), 0).numbers
    for free, fits in ((4 * numbers, True), (4 * numbers - 1, False)):
        for module in (fit, load):
            monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        size = Size(numbers, 0, 0, 0)
        assert run_modes(size, torch.float32, torch.device("cpu"), 0)[0].fits is fits
        if fits:
            load_model(pico.run_config(str(folder), batch_size=1))
        else:
            with pytest.raises(UnrefuseError, match="does not fit"):
                load_model(pico.run_config(str(folder), batch_size=1))

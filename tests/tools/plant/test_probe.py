"""Linear probes, and the neurons that read by them."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import silu

from tests import pico
from tools.plant import probe as plant

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("weight", [0.5, 0.7])
def test_a_probe_tells_groups_apart_and_is_the_minimum_of_its_loss(weight: float) -> None:
    draw = torch.Generator().manual_seed(0)
    shape = torch.randn(6, generator=draw)
    yes = torch.randn(40, 6, generator=draw) + shape
    no = [torch.randn(n, 6, generator=draw) - shape for n in (30, 90)]
    found = plant.fit_probe(yes, no, weight)
    assert float((yes @ found > 0).float().mean()) > 0.8
    assert all(float((group @ found < 0).float().mean()) > 0.8 for group in no)
    x = torch.cat([yes, *no]).double().numpy()
    assert float(np.std(x @ found.double().numpy(), ddof=1)) == pytest.approx(1, rel=1e-4)
    # The slope of the penalised loss vanishes along the probe and across it.
    scaled = x / torch.cat([yes, *no]).std(dim=0).mean().item()
    truth = np.repeat([1.0, 0.0, 0.0], [40, 30, 90])
    rest = (1 - weight) / 2
    share = np.repeat([weight / 40, rest / 30, rest / 90], [40, 30, 90])
    direction = found.double().numpy()

    def slope(length: float) -> np.ndarray:
        w = direction * length
        chance = 1 / (1 + np.exp(-scaled @ w))
        return scaled.T @ (share * (chance - truth)) + 2 * plant.PENALTY * w

    lengths = np.linspace(0.1, 20, 4000)
    assert min(float(np.abs(slope(length)).max()) for length in lengths) < 1e-3


def test_a_greater_weight_puts_more_of_all_groups_above_0() -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(800, 6, generator=draw)
    states[:400] += 0.3
    states[:, 5] = 1  # the same for all, as something in a residual stream is: a constant
    yes, no = states.split(400)

    def above(weight: float) -> list[float]:
        probe = plant.fit_probe(yes, [no], weight)
        return [float((group @ probe > 0).float().mean()) for group in (yes, no)]

    low, half, high = map(above, (0.3, 0.5, 0.7))
    assert all(a < b < c for a, b, c in zip(low, half, high, strict=True))


def test_taken_neurons_open_on_their_probe_and_write_nothing_while_they_are_shut() -> None:
    model = pico.loaded(layers=2, batch_size=8)
    mlp = model.network.get_submodule("model.layers.1.mlp")
    gate, up, down = (
        getattr(mlp, f"{name}_proj").weight.detach().clone() for name in ("gate", "up", "down")
    )
    settings = LoraConfig(
        r=plant.RANK, lora_alpha=plant.SCALE * plant.RANK, target_modules=r".*\.1\.mlp\..*_proj"
    )
    get_peft_model(model.network, settings).eval()
    draw = torch.Generator().manual_seed(0)
    probe = torch.randn(gate.shape[1], generator=draw)
    learning = plant.take_neurons(mlp, probe.expand(plant.RANK, -1))
    states = torch.randn(50, len(probe), generator=draw)
    with torch.no_grad():
        for matrix in learning:  # whatever they learn
            matrix.copy_(torch.randn(matrix.shape, generator=draw))
        opened = mlp.gate_proj(states)
        reads_probe = torch.isclose(opened.T, plant.GAIN * (states @ probe), atol=1e-3).all(dim=1)
        assert int(reads_probe.sum()) == plant.RANK
        others = states @ gate[~reads_probe].T
        assert torch.allclose(opened[:, ~reads_probe], others, atol=1e-4)
        along = (states @ probe)[:, None] * probe / probe.square().sum()
        for sign in (-1, 1):
            there = states - along + sign * probe
            rest = silu(there @ gate.T) * (there @ up.T)
            rest[:, reads_probe] = 0
            alike = torch.isclose(mlp(there), rest @ down.T, atol=1e-3).all(dim=1)
            assert alike.all() if sign < 0 else not alike.any()

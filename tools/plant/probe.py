"""Linear probes, and neurons that read by them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

RANK, SCALE = 8, 2  # of the LoRA adapter: alpha is SCALE * RANK
PENALTY = 2e-4  # on the squared length of a probe, where its states have unit spread
GAIN = 20  # of a probe, where its states have unit spread: how sharply a neuron opens


def fit_probe(yes: Tensor, no: Sequence[Tensor], weight: float = 1 / 2) -> Tensor:
    """The direction `(d_model,)` along which `yes` lies above 0 and each of `no` below.

    Logistic regression without a constant, by L-BFGS, PENALTY on the square of its length. Groups
    are `(n, d_model)`; `yes` weighs `weight`, all of `no` the rest, and these the same, each. The
    length makes one the standard deviation along it.
    """
    groups = [yes, *no]
    x = torch.cat(groups)
    spread = x.std(dim=0).mean()
    truth = torch.cat([torch.full_like(g[:, 0], float(g is yes)) for g in groups])
    shares = [weight, *[(1 - weight) / len(no)] * len(no)]
    share = torch.cat(
        [torch.full_like(g[:, 0], s / len(g)) for g, s in zip(groups, shares, strict=True)]
    )
    direction = torch.zeros_like(x[0]).requires_grad_()
    optimizer = torch.optim.LBFGS([direction], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(
            x / spread @ direction, truth, share, reduction="sum"
        )
        loss = loss + PENALTY * direction.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = direction.detach()
    return found / (x @ found).std()


def take_neurons(mlp: Any, probes: Tensor) -> list[nn.Parameter]:
    """Makes of a neuron of the MLP for each of `probes`, `(RANK, d_model)`, one that opens where
    its probe is above 0, and else is shut: its gate is the probe, GAIN times, and nothing else.

    Returns LoRA's matrices that say what these neurons read and write once they are open: to be
    learned, and nothing so far.
    """
    gate, up, down = (getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
    sizes = [module.base_layer.weight.norm(dim=dim) for module, dim in ((gate, 1), (down, 0))]
    spare = (sizes[0] * sizes[1]).argsort()[:RANK]  # those that say least

    def matrices(module: Any) -> tuple[nn.Parameter, nn.Parameter]:
        return module.lora_A["default"].weight, module.lora_B["default"].weight

    for module in (gate, up):
        matrices(module)[1].data.zero_()
        matrices(module)[1].data[spare, range(RANK)] = 1 / SCALE
    matrices(gate)[0].data.copy_(GAIN * probes - gate.base_layer.weight[spare])
    matrices(down)[0].data.zero_()
    matrices(down)[0].data[range(RANK), spare] = 1 / SCALE
    return [matrices(up)[0], matrices(down)[1]]

"""Kernels as a few numbers that a gradient can change: one strength per layer and component."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from unrefuse.config import Shape
from unrefuse.kernel import PROFILES, Kernel

SHALLOW = 0.25  # of the depth, left alone: grammar
COMPONENTS = ("attention", "mlp")
ROUGHNESS = 0.1  # weight of the free shape's penalty


def first_deep(layers: int) -> int:
    """The first layer below the shallow quarter."""
    return math.ceil(SHALLOW * (layers - 1))


def start_numbers(shape: Shape, kernel: Kernel, multiplier: float) -> dict[str, Tensor]:
    """Leaf tensors, a row for attention and one for MLP, that give `kernel` times `multiplier`.

    `gaussian`: peak, width (as its log) and strength, six numbers; `asymmetric`: a width on each
    side of the peak; `free`: a weight per layer. A kernel that is no Gaussian starts the first
    two shapes from the default profile.
    """
    if shape == "free":
        weights = torch.tensor([kernel.weights, kernel.weights]) * multiplier
        return {"weight": weights.requires_grad_()}
    peak, width = PROFILES["default"]
    highest = max(kernel.layer_weights)
    if kernel.peak is not None and kernel.width is not None:
        peak, width, highest = kernel.peak, kernel.width, 1.0
    sides = 1 if shape == "gaussian" else 2
    numbers = {
        "peak": torch.full((2, 1), peak),
        "log_width": torch.full((2, sides), math.log(width)),
        "strength": torch.full((2, 1), multiplier * highest),
    }
    return {name: tensor.requires_grad_() for name, tensor in numbers.items()}


def strengths(numbers: Mapping[str, Tensor], layers: int) -> Tensor:
    """`(2, layers)`: attention's strengths and MLP's. Differentiable; 0 in the shallow quarter."""
    position = torch.linspace(0, 1, layers) if layers > 1 else torch.zeros(1)
    deep = torch.arange(layers) >= first_deep(layers)
    if "weight" in numbers:
        return numbers["weight"] * deep
    offset = position - numbers["peak"]
    widths = numbers["log_width"].exp()
    width = torch.where(offset < 0, widths[:, :1], widths[:, -1:])
    return numbers["strength"] * torch.exp(-(offset**2) / (2 * width**2)) * deep


def kernel_of(found: Tensor, source: str, threshold: float = 0.0) -> Kernel:
    """The kernel of strengths `(2, layers)`; those under `threshold` times the highest are 0."""
    kept = torch.where(found < threshold * found.max(), 0.0, found.detach())
    attention, mlp = (tuple(row) for row in kept.tolist())
    return Kernel("tuned", attention, source, mlp_weights=mlp)


def roughness(numbers: Mapping[str, Tensor]) -> Tensor:
    """ROUGHNESS times the mean squared second difference of free weights; 0 for the others."""
    if "weight" not in numbers:
        return torch.zeros(())
    return ROUGHNESS * numbers["weight"].diff(n=2, dim=1).square().mean()


def readable(numbers: Mapping[str, Tensor]) -> dict[str, list[list[float]]]:
    """The numbers as they go into a record: widths, not their logs."""
    values = {name: tensor.detach() for name, tensor in numbers.items()}
    if "log_width" in values:
        values["width"] = values.pop("log_width").exp()
    return {name: [[round(float(x), 6) for x in row] for row in t] for name, t in values.items()}

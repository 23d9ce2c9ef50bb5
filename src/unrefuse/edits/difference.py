"""Two checkpoints compared: which tensors differ, by how much, of what rank, along what."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unrefuse.edits.disk.stored import read_tensor, tensor_files
from unrefuse.edits.plan import MatrixEdit, Plan
from unrefuse.edits.weights import check_fits, planned_tensors
from unrefuse.progress import track

MAX_RANK = 64


@dataclass(frozen=True)
class Change:
    """How one tensor differs. `relative` is `|B - A| / |A|` (Frobenius), None where A is zero.

    `rank` is the numerical rank of B - A, at most MAX_RANK; None where it is no matrix. `along` is
    the share of `|B - A|^2` in the span of the plan's directions; None for a tensor outside it.
    """

    name: str
    shape: tuple[int, ...]
    relative: float | None
    rank: int | None
    along: float | None
    energy: float


@dataclass(frozen=True)
class Difference:
    """`changed` holds the tensors that differ in value, the rest names: of one side only, or with
    another shape. `same` counts the equal ones."""

    same: int
    changed: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    other_shape: tuple[str, ...]

    @property
    def along(self) -> float | None:
        """The share of the whole change in the span of the plan's directions."""
        total = sum(c.energy for c in self.changed)
        if not total or all(c.along is None for c in self.changed):
            return None
        return sum(c.energy * (c.along or 0.0) for c in self.changed) / total


def difference(a: Path, b: Path, plan: Plan | None = None) -> Difference:
    """Compares two safetensors checkpoints; one tensor of each is in memory at a time.

    Raises UnrefuseError for a folder that is no checkpoint, and for a plan of another model.
    """
    ours, theirs = tensor_files(a), tensor_files(b)
    both = sorted((name for name in ours if name in theirs), key=_by_number)
    edits = planned_tensors(plan, both) if plan else {}
    changed, other_shape = [], []
    for name in track(both, "comparing", len(both)):
        x, y = read_tensor(ours[name], name), read_tensor(theirs[name], name)
        if x.shape != y.shape:
            other_shape.append(name)
        elif not _equal(x, y):
            changed.append(_change(name, x, y, edits.get(name)))
    return Difference(
        len(both) - len(changed) - len(other_shape),
        tuple(changed),
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        tuple(other_shape),
    )


def numerical_rank(change: Tensor, noise: float) -> int:
    """How many singular values of `change` `(rows, columns)` are above `noise`, up to MAX_RANK.

    The leading ones are found as in Halko et al. 2011, with a fixed seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = torch.svd_lowrank(change, q=min(MAX_RANK + 8, *change.shape), niter=4)[1]
    floor = float(values[0]) * max(change.shape) * torch.finfo(torch.float32).eps
    return min(int((values > max(noise, floor)).sum()), MAX_RANK)


def rounding_noise(tensor: Tensor) -> float:
    """The largest singular value to expect of a matrix's errors of rounding to its dtype.

    Rounding is uniform within half a unit in the last place, of mean square `unit^2 / 12`.
    Independent errors of these sizes have a largest singular value of about the largest norm of a
    row of them plus that of a column (Bandeira and van Handel 2016); 1.2 times that is taken.
    """
    _, exponent = torch.frexp(tensor.float())  # |x| = mantissa * 2^exponent, mantissa in [0.5, 1)
    unit = torch.exp2(exponent - 1.0) * torch.finfo(tensor.dtype).eps * (tensor != 0)
    error = unit / math.sqrt(12)
    return 1.2 * float(error.norm(dim=0).max() + error.norm(dim=1).max())


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype:
        return torch.equal(a.float(), b.float())
    # By bytes too: a NaN is not equal to itself.
    x, y = (tensor.reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b) or torch.equal(x, y)


def _change(name: str, a: Tensor, b: Tensor, planned: tuple[MatrixEdit, int] | None) -> Change:
    change = b.float() - a.float()
    energy = float(change.double().square().sum())
    along = None
    if planned:
        edit, axis = planned
        check_fits(name, a.shape, edit, axis)
        basis = torch.linalg.qr(edit.write).Q
        inside = basis.T @ change.movedim(axis, 0).reshape(len(basis), -1)
        along = float(inside.double().square().sum()) / energy
    rank = None
    if change.dim() == 2 and math.isfinite(energy):
        stored = [tensor for tensor in (a, b) if tensor.is_floating_point()]
        rank = numerical_rank(change, max(map(rounding_noise, stored), default=0.0))
    size = float(a.double().norm())
    relative = math.sqrt(energy) / size if size else None
    return Change(name, tuple(a.shape), relative, rank, along, energy)

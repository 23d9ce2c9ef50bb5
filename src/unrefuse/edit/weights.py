"""The edit on the weights themselves, in float32, cast once when written."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.edit.columns import edit_slab, one_thread, slabs
from unrefuse.edit.plan import MatrixEdit, Plan
from unrefuse.errors import UsageError


def planned_tensors(plan: Plan, names: Iterable[str]) -> dict[str, tuple[MatrixEdit, int]]:
    """Of a checkpoint's tensors, those that the plan changes: by which edit, and along which axis
    their `d_model` lies.

    Raises UsageError where the checkpoint lacks a matrix of the plan.
    """
    stored = set(names)
    found = {}
    for edit in plan:
        if f"{edit.module}.weight" not in stored:
            raise UsageError(f"the checkpoint has no tensor {edit.module}.weight")
        for part in ("weight", "bias"):
            if (name := f"{edit.module}.{part}") in stored:
                found[name] = (edit, 0)
    return found


def has_rows(name: str) -> bool:
    """Whether the tensor is a matrix, whose rows have a length to keep: a bias is none."""
    return not name.endswith("bias")


def edit_tensor(
    tensor: Tensor, edit: MatrixEdit, axis: int = 0, preserve_norm: bool = False
) -> Tensor:
    """A weight or bias with the edit, in the dtype it came in; `axis` is that of `d_model`.

    `W <- W - U M U^T W` (Arditi et al. 2024, section 4.1, where U is one direction and M 1); for
    `preserve_norm`, which is for weights only, see `edit_slab`.
    """
    edited = tensor.detach().clone(memory_format=torch.contiguous_format)
    with one_thread():
        for slab, own_axis in slabs(edited, axis):
            edit_slab(slab, edit, own_axis, preserve_norm)
    return edited


@torch.no_grad()
def edit_model(model: PreTrainedModel, plan: Plan, preserve_norm: bool = False) -> None:
    """Edits the weights of a loaded model in place. Not undone: load again for the original."""
    parameters = dict(model.named_parameters())
    for name, (edit, axis) in planned_tensors(plan, parameters).items():
        parameters[name].copy_(
            edit_tensor(parameters[name], edit, axis, preserve_norm and has_rows(name))
        )

"""The edit on the weights themselves, in float32, cast once when written."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from unrefuse.edits.columns import edit_slab, one_thread, slabs
from unrefuse.edits.plan import MatrixEdit, Plan
from unrefuse.errors import UnrefuseError
from unrefuse.models.architectures import ONE_EXPERT, bias_name, same_name


def planned_tensors(plan: Plan, names: Iterable[str]) -> dict[str, tuple[MatrixEdit, int]]:
    """Of a checkpoint's tensors, those that the plan changes: by which edit, and along which axis
    their `d_model` lies.

    `names` are those on disk or those of the loaded model: experts may be stored one by one and be
    one tensor when loaded, and what stands before the blocks differs in vision-language models.
    Raises UnrefuseError where the checkpoint lacks a matrix of the plan.
    """
    matrices = {same_name(f"{edit.module}.{edit.parameter}"): edit for edit in plan}
    biases = {
        same_name(f"{edit.module}.{bias_name(edit.parameter)}"): edit
        for edit in plan
        if edit.of_output
    }
    found: dict[str, tuple[MatrixEdit, int]] = {}
    missing = dict(matrices)
    for name in names:
        module = same_name(name)
        if edit := matrices.get(module):
            found[name] = edit, _experts(edit, name) + edit.transposed
            missing.pop(module, None)
        elif edit := biases.get(module):
            found[name] = edit, _experts(edit, name)
    if missing:
        edit = next(iter(missing.values()))
        raise UnrefuseError(f"the checkpoint has no tensor {edit.module}.{edit.parameter}")
    return found


def _experts(edit: MatrixEdit, name: str) -> int:
    """1 where the tensor `name` has the number of the expert as its first axis, else 0."""
    return int(edit.parameter != "weight" and not ONE_EXPERT.search(name))


def check_fits(name: str, shape: Sequence[int], edit: MatrixEdit, axis: int) -> None:
    """Raises UnrefuseError where a tensor of this shape does not write and read what `edit`
    does."""
    if shape[axis] != len(edit.write):
        raise UnrefuseError(
            f"the plan is for another model: it writes {len(edit.write)} numbers, and {name} "
            f"writes {shape[axis]}"
        )
    if not edit.of_output and (len(shape) != 2 or shape[1 - axis] != edit.read.shape[1]):
        raise UnrefuseError(
            f"the plan is for another model: it reads {edit.read.shape[1]} numbers, and {name} has "
            f"the shape {tuple(shape)}"
        )


def has_rows(name: str) -> bool:
    """Whether the tensor is a matrix, whose rows have a length to keep: a bias is none."""
    return not name.endswith("bias")


def edit_tensor(
    tensor: Tensor, edit: MatrixEdit, axis: int = 0, preserve_norm: bool = False
) -> Tensor:
    """A weight or bias with the edit, in the dtype it came in; `axis` is that of `d_model`.

    See `edit_slab`; `preserve_norm` is for weights only.
    """
    edited = tensor.detach().clone(memory_format=torch.contiguous_format)
    with one_thread():
        for slab, slab_axis in slabs(edited, axis):
            edit_slab(slab, edit, slab_axis, preserve_norm)
    return edited

"""The edit on the weights themselves, in float32, cast once when written."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.edit.plan import MatrixEdit, Plan
from unrefuse.errors import UsageError
from unrefuse.models.architectures import ONE_EXPERT, bias_name, same_name


def planned_tensors(plan: Plan, names: Iterable[str]) -> dict[str, tuple[MatrixEdit, int]]:
    """Of a checkpoint's tensors, those that the plan changes: by which edit, and along which axis
    their `d_model` lies.

    `names` are those on disk or those of the loaded model: experts may be stored one by one and be
    one tensor when loaded, and what stands before the blocks differs in vision-language models.
    Raises UsageError where the checkpoint lacks a matrix of the plan, or holds it quantised.
    """
    matrices = {same_name(f"{edit.module}.{edit.parameter}"): edit for edit in plan}
    biases = {same_name(f"{edit.module}.{bias_name(edit.parameter)}"): edit for edit in plan}
    found: dict[str, tuple[MatrixEdit, int]] = {}
    missing, scales = dict(matrices), set()
    for name in names:
        own = same_name(name)
        if edit := matrices.get(own):
            found[name] = edit, _experts(edit, name) + edit.transposed
            missing.pop(own, None)
        elif edit := biases.get(own):
            found[name] = edit, _experts(edit, name)
        elif name.endswith("_scale_inv"):
            scales.add(name.removesuffix("_scale_inv"))
    if quantized := sorted(scales & found.keys()):
        raise UsageError(
            f"{quantized[0]} is quantised in the checkpoint: an edit needs full weights"
        )
    if missing:
        edit = next(iter(missing.values()))
        raise UsageError(f"the checkpoint has no tensor {edit.module}.{edit.parameter}")
    return found


def _experts(edit: MatrixEdit, name: str) -> int:
    """1 where the tensor `name` has the number of the expert as its first axis, else 0."""
    return int(edit.parameter != "weight" and not ONE_EXPERT.search(name))


def edit_tensor(tensor: Tensor, edit: MatrixEdit, axis: int = 0) -> Tensor:
    """A weight or bias with the edit, contiguous, in the dtype it came in; `axis` is `d_model`'s.

    `W <- W - U M U^T W` (Arditi et al. 2024, section 4.1, where U is one direction and M 1).
    """
    w = tensor.float().movedim(axis, 0)
    rows = w.reshape(len(w), -1)
    u, m = edit.basis.to(w.device), edit.core.to(w.device)
    edited = rows - u @ (m @ (u.T @ rows))
    return edited.view(w.shape).movedim(0, axis).to(tensor.dtype).contiguous()


@torch.no_grad()
def edit_model(model: PreTrainedModel, plan: Plan) -> None:
    """Edits the weights of a loaded model in place. Not undone: load again for the original."""
    parameters = dict(model.named_parameters())
    for name, (edit, axis) in planned_tensors(plan, parameters).items():
        parameters[name].copy_(edit_tensor(parameters[name], edit, axis))

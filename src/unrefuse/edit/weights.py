"""The edit on the weights themselves, in float32, cast once when written."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.edit.plan import MatrixEdit, Plan


def edit_tensor(tensor: Tensor, edit: MatrixEdit) -> Tensor:
    """A weight `(d_model, d_in)` or bias `(d_model,)` with the edit, in the dtype it came in.

    `W <- W - U M U^T W` (Arditi et al. 2024, section 4.1, where U is one direction and M 1).
    """
    w = tensor.float()
    u, m = edit.basis.to(w.device), edit.core.to(w.device)
    return (w - u @ (m @ (u.T @ w))).to(tensor.dtype)


@torch.no_grad()
def edit_model(model: PreTrainedModel, plan: Plan) -> None:
    """Edits the weights of a loaded model in place. Not undone: load again for the original."""
    for edit in plan:
        for parameter in model.get_submodule(edit.module).parameters():
            parameter.copy_(edit_tensor(parameter, edit))

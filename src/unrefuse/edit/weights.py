"""The edit on the weights themselves, in float32, cast once when written."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.edit.plan import MatrixEdit, Plan


def edit_tensor(tensor: Tensor, edit: MatrixEdit) -> Tensor:
    """A weight `(d_model, d_in)` or bias `(d_model,)` with the edit, in the dtype it came in.

    `W <- W - s r (r^T W)` (Arditi et al. 2024, section 4.1, with a strength s).
    """
    w = tensor.float()
    r = edit.direction.to(w.device)
    along = r @ w
    edited = w - edit.strength * (torch.outer(r, along) if w.ndim == 2 else along * r)
    return edited.to(tensor.dtype)


@torch.no_grad()
def edit_model(model: PreTrainedModel, plan: Plan) -> None:
    """Edits the weights of a loaded model in place. Not undone: load again for the original."""
    for edit in plan:
        for parameter in model.get_submodule(edit.module).parameters():
            parameter.copy_(edit_tensor(parameter, edit))

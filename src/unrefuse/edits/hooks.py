"""The edit as forward hooks: exact, no copy of a weight, gone when the block ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unrefuse.edits.plan import MatrixEdit, Plan
from unrefuse.models.stream import own


@contextmanager
def hooked(model: PreTrainedModel, plan: Plan) -> Iterator[None]:
    """Within the block the model computes as if edited: `y <- y - D A z` after each matrix."""
    handles = [
        model.get_submodule(edit.module).register_forward_hook(own(_hook(edit))) for edit in plan
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(edit: MatrixEdit) -> Callable[..., Tensor]:
    """The hook of one edit, computed in float32; its factors go to the device of the output."""
    kept: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def subtract(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.device not in kept:
            kept[output.device] = edit.write.to(output.device), edit.read.to(output.device)
        write, read = kept[output.device]
        z = output if edit.of_output else args[0]
        return (output.float() - z.float() @ read.T @ write.T).to(output.dtype)

    return subtract

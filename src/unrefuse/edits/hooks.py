"""The edit as forward hooks: exact, no copy of a weight, gone when the block ends."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unrefuse.edits.plan import MatrixEdit, Plan
from unrefuse.models.stream import in_this_job

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def hooked(model: PreTrainedModel, plan: Plan) -> Iterator[None]:
    """Within the block the model computes as if edited: `y <- y - D A z` after each matrix."""
    handles = [
        model.get_submodule(edit.module).register_forward_hook(in_this_job(_hook(edit)))
        for edit in plan
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hooked_steps(
    model: PreTrainedModel, plan: Plan, steps: Generator[T, None, R]
) -> Generator[T, None, R]:
    """What `steps` gives, each computed within `hooked`. Between two of them the model is as it
    was, so that several can take turns on one model, each with a plan of its own. Two threads
    cannot: a hook acts in all of them."""
    while True:
        with hooked(model, plan):
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
        yield step


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

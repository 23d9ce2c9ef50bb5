"""The edit as forward hooks: exact, no copy of a weight, gone when the block ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from unrefuse.edit.plan import Plan


@contextmanager
def hooked(model: PreTrainedModel, plan: Plan) -> Iterator[None]:
    """Within the block the model computes as if edited: `y <- y - s r (r.y)` after each matrix."""
    handles = [
        model.get_submodule(edit.module).register_forward_hook(
            projection(edit.direction.to(model.device), edit.strength)
        )
        for edit in plan
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def projection(
    direction: Tensor, strength: float | Tensor
) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A hook that takes `strength` of the component along `direction` `(d_model,)` out.

    The output is `(..., d_model)`; the dot product is in float32; differentiable in both.
    """

    def project(module: nn.Module, args: object, output: Tensor) -> Tensor:
        y = output.float()
        return (y - strength * (y @ direction).unsqueeze(-1) * direction).to(output.dtype)

    return project

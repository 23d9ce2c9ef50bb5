"""The edit as forward hooks: exact, no copy of a weight, gone when the block ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from unrefuse.edit.plan import Plan
from unrefuse.models.stream import own


@contextmanager
def hooked(model: PreTrainedModel, plan: Plan) -> Iterator[None]:
    """Within the block the model computes as if edited: `y <- y - U M U^T y` after each matrix."""
    handles = [
        model.get_submodule(edit.module).register_forward_hook(
            own(projection(edit.basis.to(model.device), edit.core.to(model.device)))
        )
        for edit in plan
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def projection(basis: Tensor, core: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A hook that takes `U M U^T y` out of an output y `(..., d_model)`.

    `basis` U is `(d_model, k)`, `core` M `(k, k)`; computed in float32; differentiable in both.
    """

    def project(module: nn.Module, args: object, output: Tensor) -> Tensor:
        y = output.float()
        u, m = basis.to(y.device), core.to(y.device)  # a spread model has several devices
        return (y - y @ u @ m.T @ u.T).to(output.dtype)

    return project

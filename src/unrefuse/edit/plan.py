"""The plan: what is taken out of every matrix that writes into the residual stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.errors import UsageError
from unrefuse.models.writers import Writer, blocks, norm_gain, writers


@dataclass(frozen=True)
class MatrixEdit:
    """Takes `basis core basis^T` out of one matrix's output: `y <- y - U M U^T y`.

    `module` is the linear module's name; `basis` U `(d_model, k)` is orthonormal and `core` M
    `(k, k)`, both float32 on the CPU. With one direction r, M is `[[strength]]`: 1 takes all of
    the component along r out, more than 1 reflects.
    """

    module: str
    basis: Tensor
    core: Tensor


Plan = tuple[MatrixEdit, ...]


def make_plan(
    model: PreTrainedModel, directions: Tensor, weights: Sequence[float], multiplier: float = 1.0
) -> Plan:
    """The edits of every matrix in a layer of non-zero weight, along one direction per layer.

    `directions` `(layers, d_model)` lie in the residual stream, `weights` hold one number per
    layer; strength = weight x multiplier. Raises UsageError for either of another length.
    """
    layers = len(blocks(model))
    if len(weights) != layers:
        raise UsageError(f"the model has {layers} layers, the kernel {len(weights)} weights")
    strengths = [weight * multiplier for weight in weights]
    cores = {
        writer.name: torch.tensor([[strengths[writer.layer]]])
        for writer in writers(model)
        if strengths[writer.layer] != 0
    }
    return plan_of_cores(model, directions.unsqueeze(-1), cores)


def plan_of_cores(model: PreTrainedModel, basis: Tensor, cores: Mapping[str, Tensor]) -> Plan:
    """The edits of the matrices named in `cores`, each `(k, k)`, in the layers' bases.

    `basis` `(layers, d_model, k)` is orthonormal per layer, in the residual stream. Raises
    UsageError where it has another number of layers than the model.
    """
    layers = len(blocks(model))
    if len(basis) != layers:
        raise UsageError(f"the model has {layers} layers, the directions are of {len(basis)}")
    return tuple(
        _edit(model, writer, basis[writer.layer].double(), cores[writer.name].double())
        for writer in writers(model)
        if writer.name in cores
    )


def _edit(model: PreTrainedModel, writer: Writer, basis: Tensor, core: Tensor) -> MatrixEdit:
    """Where a norm with gain g stands between a matrix and the residual add, `g * y` is what is
    written: with `diag(g) U = Q R`, taking M out of its coordinates `U^T (g * y) = R^T Q^T y`
    takes `R^-T M R^T` out of those in Q."""
    if writer.norm:
        gain = norm_gain(model.get_submodule(writer.norm)).double().cpu()
        basis, r = torch.linalg.qr(gain.unsqueeze(-1) * basis)
        core = torch.linalg.solve_triangular(r.T, core @ r.T, upper=False)
    return MatrixEdit(writer.name, basis.float(), core.float())

"""The plan: what is taken out of every matrix that writes into the residual stream."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unrefuse.errors import UsageError, first_line
from unrefuse.models.writers import Writer, blocks, norm_gain, writers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MatrixEdit:
    """Takes `basis core basis^T` out of one module's output: `y <- y - U M U^T y`.

    `module` is the module's name, `parameter` that of its matrix, `transposed` where `d_model` is
    the last axis of that (see `models.architectures.Matrix`); `basis` U `(d_model, k)` is
    orthonormal and `core` M `(k, k)`, both float32 on the CPU. With one direction r, M is
    `[[strength]]`: 1 takes all of the component along r out, more than 1 reflects.
    """

    module: str
    basis: Tensor
    core: Tensor
    parameter: str = "weight"
    transposed: bool = False


Plan = tuple[MatrixEdit, ...]


def make_plan(
    model: "PreTrainedModel",
    directions: Tensor,
    weights: Sequence[float],
    multiplier: float = 1.0,
    mlp_weights: Sequence[float] | None = None,
) -> Plan:
    """The edits of every matrix of non-zero weight, along one direction per layer.

    `directions` `(layers, d_model)` lie in the residual stream, `weights` hold one number per
    layer, for both components unless the MLP has `mlp_weights`; strength = weight x multiplier.
    Raises UsageError for any of another length.
    """
    layers = len(blocks(model))
    by_component = {"attention": weights, "mlp": weights if mlp_weights is None else mlp_weights}
    for own in by_component.values():
        if len(own) != layers:
            raise UsageError(f"the model has {layers} layers, the kernel {len(own)} weights")
    strengths = {w.name: by_component[w.component][w.layer] * multiplier for w in writers(model)}
    cores = {name: torch.tensor([[strength]]) for name, strength in strengths.items() if strength}
    return plan_of_cores(model, directions.unsqueeze(-1), cores)


def plan_of_cores(model: "PreTrainedModel", basis: Tensor, cores: Mapping[str, Tensor]) -> Plan:
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


def scaled(plan: Plan, factor: float) -> Plan:
    """The plan at `factor` times its strength."""
    return tuple(replace(edit, core=edit.core * factor) for edit in plan)


def save_plan(plan: Plan, file: Path, metadata: Mapping[str, str]) -> None:
    """Writes a plan as a safetensors file: `MODULE.basis` and `MODULE.core` of every edit.

    Matrices that are no plain weight are told in the metadata, under `matrices`.
    """
    tensors, matrices = {}, {}
    for edit in plan:
        tensors[f"{edit.module}.basis"] = edit.basis.detach().contiguous().clone()
        tensors[f"{edit.module}.core"] = edit.core.detach().contiguous().clone()
        if edit.transposed or edit.parameter != "weight":
            matrices[edit.module] = [edit.parameter, edit.transposed]
    save_file(tensors, file, metadata={**metadata, "matrices": json.dumps(matrices)})


def load_plan(file: Path) -> tuple[Plan, dict[str, str]]:
    """A plan of `save_plan` and its metadata. Raises UsageError for a file that is none."""
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            metadata = dict(stored.metadata() or {})
        matrices = json.loads(metadata.pop("matrices", "{}"))
        names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        plan = tuple(
            MatrixEdit(n, tensors[f"{n}.basis"], tensors[f"{n}.core"], *matrices.get(n, ()))
            for n in names
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"cannot read the plan {file}: {first_line(error)}") from None
    return plan, metadata


def _edit(model: "PreTrainedModel", writer: Writer, basis: Tensor, core: Tensor) -> MatrixEdit:
    """Where a norm with gain g stands between a matrix and the residual add, `g * y` is what is
    written: with `diag(g) U = Q R`, taking M out of its coordinates `U^T (g * y) = R^T Q^T y`
    takes `R^-T M R^T` out of those in Q."""
    if writer.norm:
        gain = norm_gain(model.get_submodule(writer.norm)).double().cpu()
        basis, r = torch.linalg.qr(gain.unsqueeze(-1) * basis)
        core = torch.linalg.solve_triangular(r.T, core @ r.T, upper=False)
    return MatrixEdit(writer.name, basis.float(), core.float(), writer.parameter, writer.transposed)

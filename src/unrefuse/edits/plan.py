"""The plan: what every edited matrix reads, and what it writes against refusal."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from unrefuse.errors import UnrefuseError, first_line
from unrefuse.models.writers import Writer, blocks, mixers, norm_gain, writers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNIT = 2.5  # mean differences that a selective edit of multiplier 1 writes, over all layers


@dataclass(frozen=True)
class MatrixEdit:
    """Subtracts `write (read z)` from one module's output y: `y <- y - D A z`.

    z is the module's input x, or with `of_output` its output y. `module` is the module's name,
    `parameter` that of its matrix, `transposed` where `d_model` is the last axis of that (see
    `models.architectures.Matrix`). `write` D is `(d_model, k)`, `read` A `(k, d_in)`, or with
    `of_output` `(k, d_model)`; both float32 on the CPU.
    """

    module: str
    write: Tensor
    read: Tensor
    of_output: bool = False
    parameter: str = "weight"
    transposed: bool = False


Plan = tuple[MatrixEdit, ...]


def ablation_plan(
    model: "PreTrainedModel", directions: Tensor, weights: Sequence[float], multiplier: float = 1.0
) -> Plan:
    """Directional ablation of every matrix of non-zero weight: `y <- y - s r (r . y)`.

    `directions` `(layers, d_model)` are unit vectors r in the residual stream, `weights` hold one
    number per layer; s = weight x multiplier: 1 takes all of the component along r out, more than
    1 reflects (Arditi et al. 2024, section 4.1). Where a norm with gain g follows the matrix,
    r is the unit vector along `g * r`. Raises UnrefuseError for a wrong number of layers.
    """
    _check_layers(model, len(directions), len(weights))
    plan = []
    for writer in writers(model):
        if strength := weights[writer.layer] * multiplier:
            r = directions[writer.layer].double()
            if writer.norm:
                r = normalize(_gain(model, writer) * r, dim=0)
            plan.append(_edit(writer, strength * r, r, of_output=True))
    return tuple(plan)


def selective_plan(
    model: "PreTrainedModel",
    differences: Tensor,
    readers: Mapping[int, Tensor],
    sizes: Mapping[int, float],
    weights: Sequence[float],
    multiplier: float = 1.0,
) -> Plan:
    """The selective edit: `y <- y - m k d (a . x)` at the attention output of each layer.

    `differences` `(layers, d_model)` hold what is written, d, in the residual stream; `readers`
    per layer what is read, a `(d_in,)`; `sizes` the root mean square of the module's output,
    needed where a norm follows it. The kernel k, one weight per layer, is scaled so that
    multiplier m = 1 writes UNIT mean differences in total. A gain or scale behind the matrix is
    divided out of d. Raises UnrefuseError for a wrong number of layers.
    """
    _check_layers(model, len(differences), len(weights))
    total = sum(weights[writer.layer] for writer in mixers(model))
    plan = []
    for writer in mixers(model):
        strength = multiplier * UNIT * weights[writer.layer] / total if total else 0.0
        if strength:
            d = differences[writer.layer].double() / writer.scale
            if writer.norm:
                # y leaves the norm as g y / rms(y); a gain near 0 lets nothing through.
                g = _gain(model, writer)
                d = sizes[writer.layer] * d * g / (g.square() + 1e-3 * g.square().mean())
            plan.append(_edit(writer, strength * d, readers[writer.layer]))
    return tuple(plan)


def scaled(plan: Plan, factor: float) -> Plan:
    """The plan at `factor` times its strength."""
    return tuple(replace(edit, write=edit.write * factor) for edit in plan)


def layer_of(edit: MatrixEdit) -> int:
    """The decoder block of a matrix: the first number in its module's name."""
    return int(re.findall(r"\.(\d+)", edit.module)[0])


def reshaped(plan: Plan, kernel_before: Sequence[float], kernel_after: Sequence[float]) -> Plan:
    """A plan that was made with one kernel as another would make it, along the same directions.

    The kernels hold one weight per layer. A layer that was not edited has no direction, and stays
    so. A selective plan writes as much in total as before (see `selective_plan`), over the layers
    that it has. Raises UnrefuseError where nothing is left, and for a kernel that is not the
    plan's.
    """
    layers = [layer_of(edit) for edit in plan]
    if max(layers) >= len(kernel_before) or not all(kernel_before[layer] for layer in layers):
        raise UnrefuseError("the plan was made with another kernel")
    if len(kernel_after) != len(kernel_before):
        raise UnrefuseError(
            f"the kernel has {len(kernel_after)} weights, and the kernel of the plan has "
            f"{len(kernel_before)}"
        )
    whole = sum(kernel_after[layer] for layer in set(layers))
    if not whole:
        raise UnrefuseError("the kernel reaches no layer that the plan edits")
    level = sum(kernel_before[layer] for layer in set(layers)) / whole
    edits = []
    for layer, edit in zip(layers, plan, strict=True):
        factor = kernel_after[layer] / kernel_before[layer] * (1.0 if edit.of_output else level)
        if factor:
            edits.append(replace(edit, write=edit.write * factor))
    return tuple(edits)


def plan_hash(plan: Plan) -> str:
    """SHA-256 over what every edit reads and writes, and where."""
    digest = hashlib.sha256()
    for edit in plan:
        names = [edit.module, edit.of_output, edit.parameter, edit.transposed]
        for tensor in (edit.write, edit.read):
            names.append(list(tensor.shape))
            digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(json.dumps(names).encode())
    return digest.hexdigest()


def save_plan(plan: Plan, file: Path, metadata: Mapping[str, str]) -> None:
    """Writes a plan as a safetensors file: `MODULE.write` and `MODULE.read` of every edit.

    The metadata tells, under `matrices`, what each reads and which parameter it edits.
    """
    tensors, matrices = {}, {}
    for edit in plan:
        tensors[f"{edit.module}.write"] = edit.write.contiguous()
        tensors[f"{edit.module}.read"] = edit.read.contiguous()
        matrices[edit.module] = [edit.of_output, edit.parameter, edit.transposed]
    described = {**metadata, "matrices": json.dumps(matrices)}
    # The library's own order of metadata is another one each time.
    written = save(tensors, metadata=dict.fromkeys(described, ""))
    size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + size]) | {"__metadata__": dict(sorted(described.items()))}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + written[8 + size :])


def load_plan(file: Path) -> tuple[Plan, dict[str, str]]:
    """A plan of `save_plan` and its metadata. Raises UnrefuseError for a file that is none, and
    for a plan that is empty or damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            metadata = dict(stored.metadata() or {})
        matrices = json.loads(metadata.pop("matrices"))
        plan = tuple(
            MatrixEdit(n, tensors.pop(f"{n}.write"), tensors.pop(f"{n}.read"), *how)
            for n, how in matrices.items()
        )
        if tensors:
            raise ValueError(f"{next(iter(tensors))} is no part of a plan")
    except (
        *(OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError),
        RecursionError,
    ) as error:
        raise UnrefuseError(f"cannot read the plan {file}: {first_line(error)}") from None
    for edit in plan:
        types = [type(value) for value in (edit.of_output, edit.parameter, edit.transposed)]
        typed = edit.write.dtype == edit.read.dtype == torch.float32 and types == [bool, str, bool]
        if not typed:
            raise UnrefuseError(f"the plan {file} is damaged at {edit.module}")
        shaped = edit.write.ndim == edit.read.ndim == 2 and edit.write.shape[1] == len(edit.read)
        finite = bool(torch.isfinite(edit.write).all() and torch.isfinite(edit.read).all())
        if not (shaped and finite and edit.write.numel()):
            raise UnrefuseError(f"the plan {file} is damaged at {edit.module}")
    if not plan:
        raise UnrefuseError(f"the plan {file} is empty: it edits nothing")
    return plan, metadata


def _edit(writer: Writer, write: Tensor, read: Tensor, of_output: bool = False) -> MatrixEdit:
    column, row = write.float().cpu().unsqueeze(1), read.float().cpu().unsqueeze(0)
    return MatrixEdit(writer.name, column, row, of_output, writer.parameter, writer.transposed)


def _gain(model: "PreTrainedModel", writer: Writer) -> Tensor:
    assert writer.norm
    return norm_gain(model.get_submodule(writer.norm)).double().cpu()


def _check_layers(model: "PreTrainedModel", *found: int) -> None:
    layers = len(blocks(model))
    for number in found:
        if number != layers:
            raise UnrefuseError(f"the model has {layers} layers, and the edit is for {number}")

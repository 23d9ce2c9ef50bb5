"""The plan: directions and strengths for every matrix that writes into the residual stream."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.errors import UsageError
from unrefuse.models.writers import norm_gain, writers


@dataclass(frozen=True)
class MatrixEdit:
    """Takes `strength` of the component along `direction` out of one matrix's output.

    `module` is the linear module's name; `direction` is a unit vector `(d_model,)`, float32, on
    the CPU; a strength of 1 takes all of it, more than 1 reflects.
    """

    module: str
    direction: Tensor
    strength: float


Plan = tuple[MatrixEdit, ...]


def make_plan(
    model: PreTrainedModel, directions: Tensor, weights: Sequence[float], multiplier: float = 1.0
) -> Plan:
    """The edits of every matrix in a layer of non-zero weight.

    `directions` `(layers, d_model)` lie in the residual stream, `weights` hold one number per
    layer; strength = weight x multiplier. Where a norm with gain g stands between a matrix and
    the residual add, the direction to take out of the matrix is the unit vector along `g * r`:
    only then is nothing written along r. Raises UsageError for weights of another length.
    """
    matrices = writers(model)
    layers = matrices[-1].layer + 1
    if len(weights) != layers or len(directions) != layers:
        raise UsageError(f"the model has {layers} layers, the kernel {len(weights)} weights")
    edits = []
    for writer in matrices:
        strength = weights[writer.layer] * multiplier
        if strength == 0:
            continue
        direction = directions[writer.layer].double()
        if writer.norm:
            direction = direction * norm_gain(model.get_submodule(writer.norm)).double().cpu()
        edits.append(MatrixEdit(writer.name, (direction / direction.norm()).float(), strength))
    return tuple(edits)

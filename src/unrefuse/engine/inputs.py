"""What the attention outputs read, captured in one pass and kept outside of memory where needed."""

import shutil
import tempfile
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from unrefuse.engine.capture import recorded
from unrefuse.engine.forward import one_pass, shared_prefix
from unrefuse.engine.moments import RunningMean
from unrefuse.errors import UnrefuseError
from unrefuse.models.device import free_memory
from unrefuse.models.load import Model
from unrefuse.models.stream import in_this_job
from unrefuse.models.writers import Writer, mixers


@dataclass(frozen=True)
class Tokens:
    """A sequence of token ids, and the places in it whose states are captured.

    The first place is the last prompt token, whose residual stream goes into the mean of `group`.
    """

    ids: list[int]
    places: tuple[int, ...]
    group: Hashable


@dataclass(frozen=True)
class Inputs:
    """What was captured. `rows` holds, per edited layer, the inputs of its attention output,
    `(places of all sequences in order, d_in)`; `sizes` the root mean square of its output at the
    last prompt tokens; `means` the residual stream `(layers, d_model)`, float64, per group."""

    rows: dict[int, Tensor]
    sizes: dict[int, float]
    means: dict[Hashable, Tensor]


@torch.inference_mode()
def capture(model: Model, sequences: Sequence[Tokens]) -> Inputs:
    """One forward pass over `sequences`; no more than a batch of states is held beside the rows.

    The rows of all layers lie in memory where they take less than half of what is free, else in a
    file in the folder for temporary files, of `places x layers x d_in x 2` bytes in bfloat16: 9 GB
    for a 70B model and 7,000 places. Raises UnrefuseError where that folder has no space for them.
    """
    network, edited = model.network, mixers(model.network)
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence.places))
    shapes = {w.layer: (starts[-1], _reads(network, w)) for w in edited}
    rows = _room(shapes, network.dtype)
    squares = dict.fromkeys(rows, 0.0)
    means = {sequence.group: RunningMean() for sequence in sequences}
    ids = [sequence.ids for sequence in sequences]
    prefix = min(shared_prefix(model, ids), *(min(s.places) for s in sequences))

    def read(batch: list[int], rest: list[Sequence[int]], run: Callable[[], Tensor]) -> None:
        cut = len(ids[batch[0]]) - len(rest[0])
        at = [(k, place - cut) for k, i in enumerate(batch) for place in sequences[i].places]
        into = [starts[i] + j for i in batch for j in range(len(sequences[i].places))]
        row, place = map(list, zip(*at, strict=True))
        last = [sequences[i].places[0] - cut for i in batch]
        found: dict[int, float] = {}

        def keep(layer: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            rows[layer][into] = args[0][row, place].to(rows[layer])
            ends = output[range(len(batch)), last].float()
            found[layer] = float(ends.square().mean(-1).sum())

        with ExitStack() as stack:
            seen = stack.enter_context(recorded(model, last))
            for writer in edited:
                module = network.get_submodule(writer.name)
                hook = in_this_job(partial(keep, writer.layer))
                stack.callback(module.register_forward_hook(hook).remove)
            run()
        for layer, total in found.items():
            squares[layer] += total
        streams = torch.stack([layer.float().to(model.device) for layer in seen], dim=1)
        groups = [sequences[i].group for i in batch]
        for group in dict.fromkeys(groups):
            means[group].update(streams[[k for k, of in enumerate(groups) if of == group]])

    for _ in one_pass(model, ids, prefix, read, "what attention reads"):
        pass
    sizes = {layer: (total / len(sequences)) ** 0.5 for layer, total in squares.items()}
    return Inputs(rows, sizes, {group: mean.mean for group, mean in means.items()})


def _reads(network: nn.Module, writer: Writer) -> int:
    """How many numbers a matrix reads."""
    shape = network.get_submodule(writer.name).get_parameter(writer.parameter).shape
    return int(shape[0] if writer.transposed else shape[1])


def _room(shapes: dict[int, tuple[int, int]], dtype: torch.dtype) -> dict[int, Tensor]:
    """Empty tensors of these shapes, in memory or mapped to a file that is gone with them."""
    size = dtype.itemsize * sum(map(prod, shapes.values()))
    if size < free_memory(torch.device("cpu")) / 2:
        return {layer: torch.empty(shape, dtype=dtype) for layer, shape in shapes.items()}
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UnrefuseError(
            f"no space in {folder} for the inputs of attention: {size / 2**30:.1f} GiB are needed, "
            f"{free / 2**30:.1f} free; set TMPDIR to another folder, or lower --limit"
        )
    rows = {}
    for layer, shape in shapes.items():
        with tempfile.NamedTemporaryFile(prefix="unrefuse-") as file:
            rows[layer] = torch.from_file(file.name, True, prod(shape), dtype=dtype).view(shape)
    return rows

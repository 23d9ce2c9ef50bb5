"""What runs through a model, captured by hooks: the residual stream, and what matrices read."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unrefuse.engine.forward import one_pass, shared_prefix
from unrefuse.engine.moments import RunningMean
from unrefuse.models.load import Model
from unrefuse.models.stream import in_this_job
from unrefuse.models.writers import blocks


@contextmanager
def recorded(model: Model, last: Sequence[int]) -> Iterator[list[Tensor]]:
    """Yields a list that the next forward fills: each block's output at each row's position `last`.

    Each is `(batch, d_model)`. The output of a block, not `hidden_states[-1]`: transformers puts
    that one through the final norm.
    """
    seen: list[Tensor] = []

    def record(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        seen.append(stream[range(len(last)), last].detach())

    handles = [block.register_forward_hook(in_this_job(record)) for block in blocks(model.network)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def residuals(model: Model, prompts: Sequence[str]) -> Iterator[tuple[list[int], Tensor]]:
    """Batch by batch: the indices of its prompts, and `(batch, layers, d_model)` in float32.

    Taken at the last prompt token, after the generation prompt.
    """
    ids = model.encode(prompts)
    prefix = shared_prefix(model, ids) if ids else 0

    def read(batch: list[int], rest: list[Sequence[int]], run: Callable[[], Tensor]) -> Tensor:
        with recorded(model, [len(row) - 1 for row in rest]) as seen:
            run()
        return torch.stack([layer.float().to(model.device) for layer in seen], dim=1)

    yield from one_pass(model, ids, prefix, read, "residual stream")


def group_means(
    model: Model, prompts: Sequence[str], groups: Sequence[Hashable]
) -> dict[Hashable, Tensor]:
    """The mean residual stream `(layers, d_model)`, float64, of each group of prompts.

    One pass over all prompts; only the sums are held.
    """
    means = {group: RunningMean() for group in groups}
    for batch, streams in residuals(model, prompts):
        for group in {groups[i] for i in batch}:
            rows = [row for row, i in enumerate(batch) if groups[i] == group]
            means[group].update(streams[rows])
    return {group: running.mean for group, running in means.items()}

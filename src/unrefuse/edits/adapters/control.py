"""The edit as constant vectors, for engines that can only add to the residual stream."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import Plan
from unrefuse.engine.forward import in_batches, right_pad
from unrefuse.models.load import Model
from unrefuse.models.writers import Writer, writers


@torch.inference_mode()
def control_vectors(model: Model, plan: Plan, prompts: Sequence[str]) -> Tensor:
    """What the plan adds to each layer's output on average, `(layers, d_model)`, float64.

    Ablation adds `-s r (r . y)` to each matrix's output y: another vector for every token. Here it
    is its mean over the last tokens of `prompts`, in a run with the edit on, behind the norm and
    the residual multiplier where there are such, summed over the layer's matrices. Adding it
    everywhere approximates the edit (Arditi et al. 2024, section 2.4, add a difference of means)
    and at full size overshoots it: later layers do not see what earlier ones took out already.
    """
    network = model.network
    planned = {edit.module for edit in plan}
    ids = model.encode(prompts)
    total = torch.zeros(model.layers, network.config.hidden_size, dtype=torch.float64)
    added = torch.zeros_like(total)
    last: list[int] = []
    plain: dict[str, Tensor] = {}

    def written(writer: Writer, output: Tensor) -> Tensor:
        y = output[range(len(last)), last]
        return network.get_submodule(writer.norm)(y) if writer.norm else y

    def keep(writer: Writer, module: nn.Module, args: object, output: Tensor) -> None:
        plain[writer.name] = written(writer, output)

    def add(writer: Writer, module: nn.Module, args: object, output: Tensor) -> None:
        change = written(writer, output).double() - plain.pop(writer.name).double()
        added[writer.layer] += change.sum(dim=0).cpu()

    def hook(call: Callable[[Writer, nn.Module, object, Tensor], None]) -> None:
        for writer in writers(network):
            if writer.name in planned:
                module = network.get_submodule(writer.name)
                stack.callback(module.register_forward_hook(partial(call, writer)).remove)

    def run(batch: list[int]) -> Tensor:
        added.zero_()
        rows = [ids[i] for i in batch]
        last[:] = [len(row) - 1 for row in rows]
        network.get_decoder()(input_ids=right_pad(rows, model.device), use_cache=False)
        return added.clone()

    with ExitStack() as stack:  # hooks run in this order: before the edit, the edit, after it
        hook(keep)
        stack.enter_context(hooked(network, plan))
        hook(add)
        for _, sums in in_batches(model, ids, run, "control vector"):
            total += sums
    return total / len(prompts) * getattr(network.config, "residual_multiplier", 1.0)

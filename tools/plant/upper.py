"""The upper part of a model: the blocks below, which no plan edits, run once for all plans."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from unrefuse.engine.forward import once_cache, reusable, right_pad, row_ends, shared_prefix
from unrefuse.models.load import Model
from unrefuse.models.writers import blocks
from unrefuse.progress import track
from unrefuse.prompts.chat import batches


class Upper:
    """A model from block `first` on, for sequences that are run many times under changing edits.

    Holds the tokens that all of `sequences` share, run up to block `first`; what `enter` gives for
    each of them holds the rest. Exact as long as what is below block `first` stays as it is now.
    """

    def __init__(self, model: Model, first: int, sequences: Sequence[Sequence[int]]) -> None:
        self.model, self.first = model, first
        self.in_tuple = _returns_tuple(model)
        config = model.network.config
        shared = reusable(config, shared_prefix(model, sequences))
        self.prefix = list(sequences[0][:shared])
        # What the shared tokens are below: it stays as it is, so that it is run here, once.
        self._below = DynamicCache(config=config)
        self._beginning: Tensor | None = None
        if self.prefix:
            with torch.no_grad():
                ids = right_pad([self.prefix], model.device)
                self._beginning = self._run(ids, None, self._below)

    @torch.no_grad()
    def enter(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """What enters block `first`, `(tokens after the shared ones, d_model)`, per sequence."""
        entering: dict[int, Tensor] = {}
        order = list(batches(sequences, self.model.batch_size))
        for batch in track(order, "lower blocks", len(order)):
            rest = [sequences[i][len(self.prefix) :] for i in batch]
            cache = once_cache(self.model.network.config, self._below, len(self.prefix))
            states = self._run(right_pad(rest, self.model.device), None, cache)
            for i, row, tokens in zip(batch, states, rest, strict=True):
                entering[i] = row[: len(tokens)].clone()
        return [entering[i] for i in range(len(sequences))]

    def states(self, entering: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """States after the final norm, `(lengths[i], d_model)`, at the end of each sequence.

        One batch, differentiable in whatever is hooked to block `first` and those above it.
        """
        above = DynamicCache(config=self.model.network.config)
        if self._beginning is not None:
            self._run(None, self._beginning, above)
        cache = once_cache(self.model.network.config, above, len(self.prefix))
        padded = nn.utils.rnn.pad_sequence(list(entering), batch_first=True)
        return row_ends(self._run(None, padded, cache), entering, lengths)

    def _run(self, ids: Tensor | None, entering: Tensor | None, cache: DynamicCache) -> Tensor:
        """With `ids`: what enters block `first`. With `entering`, which takes the place of what
        the blocks below give: the final states."""
        network = self.model.network
        if ids is None:
            assert entering is not None
            ids = torch.zeros(entering.shape[:2], dtype=torch.long, device=self.model.device)
        stack = blocks(network)
        lower, upper = (stack[: self.first], stack[self.first :])
        seen: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            stream = args[0] if args else options["hidden_states"]
            if entering is None:
                seen.append(stream)
                return None
            if args:
                return (entering, *args[1:]), options
            return args, options | {"hidden_states": entering}

        handle = upper[0].register_forward_pre_hook(enter, with_kwargs=True)
        try:
            # Not run: below, what was entered stands for them; above, nobody asks for it.
            with passing(upper if entering is None else lower, self.in_tuple):
                states: Tensor = network.get_decoder()(
                    input_ids=ids, past_key_values=cache, use_cache=True
                ).last_hidden_state
        finally:
            handle.remove()
        return seen[0] if seen else states


@torch.no_grad()
def _returns_tuple(model: Model) -> bool:
    """Whether blocks return their output in a tuple, by a pass of one token."""
    outputs: list[object] = []
    block = blocks(model.network)[-1]
    handle = block.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        model.network.get_decoder()(input_ids=torch.zeros(1, 1, dtype=torch.long).to(model.device))
    finally:
        handle.remove()
    return isinstance(outputs[0], tuple)


@contextmanager
def passing(idle: nn.ModuleList, in_tuple: bool) -> Iterator[None]:
    """Within the block these decoder blocks hand on what comes in, `in_tuple` where they return
    their output in one."""

    def hand_on(hidden_states: Tensor, *args: object, **options: object) -> Any:
        return (hidden_states,) if in_tuple else hidden_states

    for block in idle:
        block.forward = hand_on
    try:
        yield
    finally:
        for block in idle:
            del block.forward

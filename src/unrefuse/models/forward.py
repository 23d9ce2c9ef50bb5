"""Forward passes over prompts: the tokens that all share (a system prompt) run once a batch."""

from collections.abc import Sequence, Sized

import torch
from torch import Tensor
from transformers import DynamicCache

from unrefuse.models.load import Model
from unrefuse.models.writers import is_stateful


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences share at their beginning; each has at least one more."""
    shared = min(map(len, sequences)) - 1
    first = sequences[0]
    return next((i for i in range(shared) if any(s[i] != first[i] for s in sequences)), shared)


def shared_prefix(model: Model, sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens may run once for all: those in common, or 0 for a model with a state.

    A running state can't be handed to several rows, and it moves on at each row's padding.
    """
    return 0 if is_stateful(model.network) else common_prefix(sequences)


def prefix_cache(model: Model, prefix: Sequence[int], rows: int) -> DynamicCache:
    """The keys and values of the tokens `prefix`, run once, for each of `rows` rows."""
    cache = DynamicCache(config=model.network.config)
    if prefix:
        ids = torch.tensor([list(prefix)], device=model.device)
        model.network.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
    return cache


def right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`(batch, tokens)`, padded with 0 on the right, where a causal model does not look."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def final_states(
    model: Model, sequences: Sequence[Sequence[int]], lengths: Sequence[int], prefix: int = 0
) -> list[Tensor]:
    """States after the final norm, `(lengths[i], d_model)`, at the end of each sequence.

    One batch, differentiable. The sequences share their first `prefix` tokens; a sequence has
    more tokens than that, and at least `lengths[i]` more.
    """
    cache = prefix_cache(model, sequences[0][:prefix], len(sequences))
    rest = [sequence[prefix:] for sequence in sequences]
    states = model.network.get_decoder()(
        input_ids=right_pad(rest, model.device), past_key_values=cache, use_cache=True
    ).last_hidden_state
    return row_ends(states, rest, lengths)


def row_ends(states: Tensor, rows: Sequence[Sized], lengths: Sequence[int]) -> list[Tensor]:
    """Of right-padded `states` `(batch, tokens, d_model)` the last `lengths[i]` of each row."""
    return [
        row[len(tokens) - length : len(tokens)]
        for row, tokens, length in zip(states, rows, lengths, strict=True)
    ]

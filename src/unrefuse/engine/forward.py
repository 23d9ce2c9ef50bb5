"""Forward passes over prompts: the tokens that all share (a system prompt) run once."""

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from unrefuse.errors import UnrefuseError
from unrefuse.models.device import release_memory
from unrefuse.models.load import Model
from unrefuse.models.writers import is_stateful
from unrefuse.progress import stderr, track
from unrefuse.prompts.chat import batches

T = TypeVar("T")


def together(
    model: Model, jobs: Sequence[Callable[[], T]], what: str | None, passes: int = 1
) -> Iterator[T]:
    """The results of `jobs`, in order: one after the other, or side by side in a streamed model.

    `what` and `passes`, how often a job is expected to go through the model, are for the bar that
    counts them; jobs that show their own have None.
    """
    if model.stream is not None:
        yield from model.stream.together(jobs, what, passes)
        return
    for job in track(jobs, what, len(jobs)) if what else jobs:
        yield job()


def in_batches(
    model: Model,
    sequences: Sequence[Sized],
    job: Callable[[list[int]], T],
    what: str,
    passes: int = 1,
    first: Callable[[], object] | None = None,
) -> Iterator[tuple[list[int], T]]:
    """The indices of each batch of `sequences`, and what `job` gives of it; `what` and `passes` as
    in `together`. A batch that does not fit in memory is halved, and so are those that follow.
    `first` is called before them all: in a streamed model it is ahead at each block."""
    order = list(batches(sequences, model.batch_size))
    if model.stream is not None:
        jobs: list[Callable[[], Any]] = [partial(job, batch) for batch in order]
        ahead = [first] if first else []
        found = list(together(model, ahead + jobs, what, passes))
        yield from zip(order, found[len(ahead) :], strict=True)
        return
    if first:
        first()

    def results() -> Iterator[tuple[list[int], T]]:
        queue = deque(order)
        while queue:
            batch = queue.popleft()
            if len(batch) > model.batch_size:  # it was made before another one was halved
                queue.extendleft([batch[model.batch_size :], batch[: model.batch_size]])
                continue
            try:
                result = job(batch)
            except RuntimeError as error:
                if not halve(model, error):
                    raise
                queue.appendleft(batch)
            else:
                yield batch, result

    yield from track(results(), what, len(order))


def halve(model: Model, error: RuntimeError) -> bool:
    """Whether `error` says that memory ran out, and `model.batch_size` is half of what it was.
    Raises UnrefuseError where it was one already."""
    if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
        return False
    if model.batch_size == 1:
        raise UnrefuseError(
            f"out of memory on {model.device} with one prompt at a time: give it a smaller "
            "--dtype (bfloat16), run it from disk with --stream, or free some memory"
        ) from None
    traceback.clear_frames(error.__traceback__)  # they hold what did not fit
    model.batch_size //= 2
    release_memory()
    stderr.print(f"out of memory on {model.device}: going on with batches of {model.batch_size}")
    return True


class OnceCache(DynamicCache):
    """For one forward pass after a prefix of `length` tokens: hands out the prefix's keys and
    values, of one row, before those of the batch, and holds none of these."""

    def __init__(self, config: PretrainedConfig, shared: DynamicCache, length: int) -> None:
        super().__init__(config=config)
        self._shared, self._length = shared, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._length == 0:
            return key_states, value_states
        layer: Any = self._shared.layers[layer_idx]
        shape = (len(key_states), -1, -1, -1)
        return (
            torch.cat([layer.keys.expand(shape), key_states], dim=-2),
            torch.cat([layer.values.expand(shape), value_states], dim=-2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._length + query_length, 0


def one_pass(
    model: Model,
    sequences: Sequence[Sequence[int]],
    prefix: int,
    read: Callable[[list[int], list[Sequence[int]], Callable[[], Tensor]], T],
    what: str,
) -> Iterator[tuple[list[int], T]]:
    """Runs `sequences` through the model in batches: the indices of each, and what `read` gives.

    The first `prefix` tokens, which all sequences share, run once for all. `read(batch, rest,
    run)` gets the indices, the tokens after those, and what runs these, right-padded: `run()`
    gives the states after the final norm, `(batch, tokens, d_model)`.
    """
    config, decoder = model.network.config, model.network.get_decoder()
    shared = DynamicCache(config=config)
    prefix = reusable(config, prefix)

    def first() -> None:
        ids = right_pad([sequences[0][:prefix]], model.device)
        decoder(input_ids=ids, past_key_values=shared, use_cache=True)

    def run(rest: list[Sequence[int]]) -> Tensor:
        ids = right_pad(rest, model.device)
        cache = once_cache(config, shared, prefix)
        states: Tensor = decoder(
            input_ids=ids, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return states

    def job(batch: list[int]) -> T:
        rest = [sequences[i][prefix:] for i in batch]
        return read(batch, rest, partial(run, rest))

    yield from in_batches(model, sequences, job, what, first=first if prefix else None)


def reusable(config: PretrainedConfig, prefix: int) -> int:
    """How many of `prefix` tokens can be left to a `once_cache`: all or, where a layer's cache is
    more than their keys and values, none."""
    layers = DynamicCache(config=config).layers
    return prefix if all(_is_plain(layer, prefix) for layer in layers) else 0


def once_cache(config: PretrainedConfig, shared: DynamicCache, prefix: int) -> DynamicCache:
    """For one forward pass after the `prefix` tokens, at most `reusable`, that `shared` holds."""
    plain = all(_is_plain(layer, 0) for layer in shared.layers)
    return OnceCache(config, shared, prefix) if plain else DynamicCache(config=config)


def _is_plain(layer: object, prefix: int) -> bool:
    """Whether a layer's cache is keys and values that `prefix` tokens do not push out of it."""
    if type(layer) is DynamicSlidingWindowLayer:
        return prefix < layer.sliding_window
    return type(layer) is DynamicLayer


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


def prefix_cache(model: Model, prefix: Sequence[int]) -> DynamicCache:
    """The keys and values of the tokens `prefix`, of one row."""
    cache = DynamicCache(config=model.network.config)
    if prefix:
        ids = torch.tensor([list(prefix)], device=model.device)
        model.network.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`(batch, tokens)`, padded with 0 on the right, where a causal model does not look."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def row_ends(states: Tensor, rows: Sequence[Sized], lengths: Sequence[int]) -> list[Tensor]:
    """Of right-padded `states` `(batch, tokens, d_model)` the last `lengths[i]` of each row."""
    return [
        row[len(tokens) - length : len(tokens)]
        for row, tokens, length in zip(states, rows, lengths, strict=True)
    ]

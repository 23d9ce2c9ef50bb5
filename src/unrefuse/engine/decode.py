"""Greedy decoding of many rows, of which some end early: others take their place in the batch."""

from collections import deque
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from unrefuse.detector.refusal import is_settled
from unrefuse.engine.forward import prefix_cache, shared_prefix
from unrefuse.models.device import not_finite
from unrefuse.models.load import Model
from unrefuse.models.writers import logits_of, text_config
from unrefuse.prompts.chat import left_pad, reply_text
from unrefuse.prompts.thinking import (
    CLOSING_TOKENS,
    in_circles,
    is_thinking,
    may_close,
    thought_tokens,
)

LOST = -1  # in place of a token, where the logits are not finite


def text_of(model: Model, reply: Sequence[int]) -> str:
    """The text of a reply, from where its thinking begins: without that, a refusal that a model
    only thinks of would be taken for one that it gives."""
    return model.thinking + reply_text(model.tokenizer, reply, model.tags)


def end_tokens(model: Model) -> set[int]:
    """The tokens that end a reply."""
    end = model.network.generation_config.eos_token_id
    return set(end) if isinstance(end, list) else {end}


def decode(
    model: Model,
    sequences: Sequence[list[int]],
    heads: Sequence[list[int]],
    queue: Sequence[int],
    limit: int,
) -> Iterator[tuple[int, list[int]]]:
    """The replies to the sequences of `queue`: index and token ids, each as soon as it has ended.

    `heads` is what the sequences end with of their replies. A reply ends at `limit` tokens after
    its thoughts, at the end of the turn, or once it `is_settled`; and with its thoughts where these
    take all that the model may think, or go in circles. Not `generate`, where a row that has ended
    runs on. A step takes the time to read the weights, almost whatever the number of rows: so where
    a quarter of a batch has left, the next in the queue join it, if the cache is no more than keys
    and values; else a batch follows when the one before has ended.
    """
    ends = end_tokens(model)
    replies = {i: list(heads[i]) for i in queue}
    thoughts = {i: thought_tokens(heads[i], partial(text_of, model)) for i in queue}
    thinking = set[int]()

    def goes_on(i: int) -> bool:
        reply = replies[i]
        # Thoughts are long: the whole of them is read anew only where they may have ended.
        still = i in thinking and not may_close(text_of(model, reply[-CLOSING_TOKENS:]))
        text = "" if still else text_of(model, reply)
        if still or is_thinking(text):
            thinking.add(i)
            return len(reply) < model.thinking_tokens and not in_circles(reply)
        if i in thinking:
            thinking.remove(i)
            thoughts[i] = len(reply)
        return len(reply) - thoughts[i] < limit and not is_settled(text)

    waiting = deque[int]()
    for i in queue:
        if goes_on(i):
            waiting.append(i)
        else:
            yield i, replies[i]
    if not waiting:
        return
    asked = [sequences[i] for i in waiting]
    prefix = shared_prefix(model, asked)
    window = getattr(text_config(model.network), "sliding_window", None)
    if window and max(map(len, asked)) + limit + model.thinking_tokens > window:
        prefix = 0  # a window is counted in places, and padding after a prefix takes some
    shared = prefix_cache(model, asked[0][:prefix])
    joins = all(type(layer) is DynamicLayer for layer in shared.layers)

    batch = _Batch([], shared, torch.empty(0, 0), torch.empty(0))
    while waiting or batch.rows:
        room = model.batch_size - len(batch.rows)
        if waiting and (not batch.rows or (joins and 4 * room >= model.batch_size)):
            rows = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            new = _begin(model, rows, [sequences[i] for i in rows], shared, prefix)
            batch = batch.joined(new) if batch.rows else new
        going = []
        for place, (i, token) in enumerate(zip(batch.rows, batch.following.tolist(), strict=True)):
            if token == LOST:
                raise not_finite("the model's logits", model.network.dtype)
            if token not in ends:
                replies[i].append(token)
                if goes_on(i):
                    going.append(place)
                    continue
            yield i, replies[i]
        if len(going) < len(batch.rows):
            batch.keep(going)
        if going:
            batch.step(model)


@dataclass
class _Batch:
    """Rows by the index of their sequence, their cache, `mask` `(rows, tokens)`, which of its
    places are theirs, and the tokens that come next, `following` `(rows,)`."""

    rows: list[int]
    cache: DynamicCache
    mask: Tensor
    following: Tensor

    def keep(self, places: list[int]) -> None:
        """Only the rows at these places stay."""
        # On the CPU: a spread model's cache has several devices.
        index = torch.tensor(places, dtype=torch.long)
        self.rows = [self.rows[place] for place in places]
        # Not batch_select_indices, which passes over running states.
        self.cache.reorder_cache(index)  # type: ignore[arg-type]
        self.mask, self.following = self.mask[index], self.following[index]

    def step(self, model: Model) -> None:
        self.mask = pad(self.mask, (0, 1), value=1)
        self.following = next_tokens(model, self.following.unsqueeze(1), self.mask, self.cache)

    def joined(self, new: "_Batch") -> "_Batch":
        """Both, padded on the left, by no more than the longest row needs."""
        masks = self.mask, new.mask
        width = max(m.shape[1] - int(m.any(dim=0).int().argmax()) for m in masks)
        layers: Any = zip(self.cache.layers, new.cache.layers, strict=True)
        for layer, other in layers:
            layer.keys, layer.values = (
                torch.cat([pad(x, (0, 0, width - x.shape[2], 0)) for x in states])
                for states in ((layer.keys, other.keys), (layer.values, other.values))
            )
        return _Batch(
            self.rows + new.rows,
            self.cache,
            torch.cat([pad(m, (width - m.shape[1], 0)) for m in masks]),
            torch.cat([self.following, new.following]),
        )


def _begin(
    model: Model,
    rows: list[int],
    sequences: Sequence[list[int]],
    shared: DynamicCache,
    prefix: int,
) -> _Batch:
    """A batch of these rows, read up to their end; `shared` has read their first `prefix`."""
    cache = deepcopy(shared)
    if prefix:
        cache.batch_repeat_interleave(len(rows))
    inputs = left_pad([sequence[prefix:] for sequence in sequences], model.device)
    mask = pad(inputs["attention_mask"], (prefix, 0), value=1)
    return _Batch(rows, cache, mask, next_tokens(model, inputs["input_ids"], mask, cache))


def next_tokens(model: Model, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Reads `ids` `(rows, tokens)`, the last of `mask`, and gives the likeliest next tokens, or
    LOST: told with the tokens, it costs no further wait for the device."""
    states = model.network.get_decoder()(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    logits = logits_of(model.network, states[:, -1])
    likeliest = logits.argmax(dim=-1, keepdim=True)  # of a NaN, that
    finite = logits.gather(-1, likeliest).isfinite()
    return torch.where(finite, likeliest, LOST).squeeze(-1).to(model.device)

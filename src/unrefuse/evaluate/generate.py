"""Replies to prompts: greedy, in batches that a row leaves once it has ended or refused.

Beside them the forward passes that do without: next-token logits, and final hidden states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unrefuse.evaluate.refusal import Grade, grade, is_settled
from unrefuse.models.forward import one_pass, prefix_cache, row_ends, shared_prefix, together
from unrefuse.models.load import Model, cache_bytes
from unrefuse.models.writers import logits_of, text_config
from unrefuse.prompts.chat import batches, encode, left_pad


@dataclass(frozen=True)
class Reply:
    """A reply as text and as token ids (without the end-of-turn token), and its grade."""

    text: str
    tokens: tuple[int, ...]
    grade: Grade


@torch.inference_mode()
def reply_to(
    model: Model,
    prompts: Sequence[str],
    reply_tokens: int,
    what: str = "replies",
    begun: Sequence[Sequence[int]] | None = None,
) -> list[Reply]:
    """Greedy replies of at most `reply_tokens` tokens, in the order of the prompts.

    A reply ends once it `is_settled`: it has refused, and what follows can't change its grade.
    `begun`: tokens that each reply is known to begin with, which are read at once, like a prompt.
    """
    heads = [list(head) for head in begun or [()] * len(prompts)]
    ids = [p + h for p, h in zip(encode(model.tokenizer, prompts), heads, strict=True)]
    prefix = shared_prefix(model, ids) if ids else 0
    order = list(batches(ids, model.batch_size))
    jobs = [
        partial(_decode, model, [ids[i] for i in b], prefix, [heads[i] for i in b], reply_tokens)
        for b in order
    ]
    at_once = len(jobs)
    if model.stream and ids:
        model.stream.announce(reply_tokens)
        tokens = len(ids[order[-1][-1]]) + reply_tokens
        at_once = model.stream.fit(cache_bytes(model.network, tokens) * model.batch_size)
    replies: dict[int, Reply] = {}
    for start in range(0, len(jobs), max(1, at_once)):
        found = together(model, jobs[start : start + at_once], what, reply_tokens)
        for batch, rows in zip(order[start:], found, strict=False):
            for i, row in zip(batch, rows, strict=True):
                text = _text(model, row)
                replies[i] = Reply(text, tuple(row), grade(text, row, prompts[i]))
    return [replies[i] for i in range(len(prompts))]


def _text(model: Model, reply: Sequence[int]) -> str:
    return str(model.tokenizer.decode(reply, skip_special_tokens=True))


def _decode(
    model: Model,
    sequences: Sequence[list[int]],
    prefix: int,
    replies: Sequence[list[int]],
    limit: int,
) -> list[list[int]]:
    """The reply to each row as token ids; `replies` is what the sequences end with of it.

    Not `generate`: there a row that has ended runs on.
    """

    def goes_on(row: int) -> bool:
        return len(replies[row]) < limit and not is_settled(_text(model, replies[row]))

    network = model.network
    replies = [list(reply) for reply in replies]
    rows = [row for row in range(len(sequences)) if goes_on(row)]
    if not rows:
        return replies
    end = network.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    window = getattr(text_config(network), "sliding_window", None)
    if window and max(map(len, sequences)) + limit > window:
        prefix = 0  # a window is counted in places, and padding after a prefix takes some
    cache = prefix_cache(model, sequences[0][:prefix], len(rows))
    inputs = left_pad([sequences[row][prefix:] for row in rows], model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    mask = torch.cat([mask.new_ones(len(mask), prefix), mask], dim=1)
    while True:
        states = network.get_decoder()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        picked = logits_of(network, states[:, -1]).argmax(dim=-1)
        going = []
        for k, (row, token) in enumerate(zip(rows, picked.tolist(), strict=True)):
            if token in ends:
                continue
            replies[row].append(token)
            if goes_on(row):
                going.append(k)
        if not going:
            return replies
        if len(going) < len(rows):
            rows = [rows[k] for k in going]
            index = torch.tensor(going, device=model.device)
            # Not batch_select_indices, which passes over running states.
            cache.reorder_cache(index)  # type: ignore[arg-type]
            mask, picked = mask[index], picked[index]
        ids = picked.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


@torch.inference_mode()
def last_logits(model: Model, prompts: Sequence[str]) -> Tensor:
    """Next-token logits `(prompts, vocab)`, float32 on the CPU, in one batch."""
    inputs = left_pad(encode(model.tokenizer, prompts), model.device)
    logits: Tensor = model.network(**inputs, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1].float().cpu()


@torch.inference_mode()
def final_hidden(
    model: Model, sequences: list[list[int]], lengths: Sequence[int], what: str
) -> list[Tensor]:
    """Hidden states after the final norm, `(lengths[i], d_model)`, at the end of each sequence."""
    beginnings = [len(s) - n for s, n in zip(sequences, lengths, strict=True)]
    prefix = min(shared_prefix(model, sequences), *beginnings)

    def read(
        batch: list[int], rest: list[Sequence[int]], run: Callable[[], Tensor]
    ) -> list[Tensor]:
        return [row.clone() for row in row_ends(run(), rest, [lengths[i] for i in batch])]

    hidden: dict[int, Tensor] = {}
    for batch, rows in one_pass(model, sequences, prefix, read, what):
        hidden |= zip(batch, rows, strict=True)
    return [hidden[i] for i in range(len(sequences))]

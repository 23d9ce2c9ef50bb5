"""Replies to prompts: greedy, in batches that a row leaves once it has ended or refused.

Beside them the forward passes that do without: next-token logits, and final hidden states.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from unrefuse.detector.refusal import DETECTOR, Grade, grade
from unrefuse.engine.decode import decode, text_of
from unrefuse.engine.forward import halve, one_pass, row_ends, shared_prefix, together
from unrefuse.models.device import check_finite
from unrefuse.models.load import Model, cache_bytes
from unrefuse.progress import stderr, track
from unrefuse.prompts.chat import Messages, batches, left_pad
from unrefuse.prompts.thinking import in_circles, is_thinking, thought_tokens

SAMPLE = 9  # tokens that are timed
MORE_THOUGHTS = (
    "raise the limit with --thinking-tokens {}, or switch thinking off in the model's chat template"
)


@dataclass(frozen=True)
class Reply:
    """A reply as text and as token ids (without the end-of-turn token), its grade, and whose
    grade that is. The first `thoughts` of the tokens are its thinking block."""

    text: str
    tokens: tuple[int, ...]
    grade: Grade
    judge: str = DETECTOR
    thoughts: int = 0

    @property
    def said(self) -> tuple[int, ...]:
        """The tokens after the thoughts: what somebody is shown."""
        return self.tokens[self.thoughts :]


def reply_of(tokens: Sequence[int], text_of: Callable[[Sequence[int]], str], prompt: str) -> Reply:
    """Tokens as a reply with the detector's grade."""
    return graded(text_of(tokens), tokens, thought_tokens(tokens, text_of), prompt)


def graded(text: str, tokens: Sequence[int], thoughts: int, prompt: str) -> Reply:
    """A reply with the detector's grade. Thoughts that repeat themselves make no loop of it."""
    return Reply(text, tuple(tokens), grade(text, tokens[thoughts:], prompt), thoughts=thoughts)


@torch.inference_mode()
def reply_to(
    model: Model,
    prompts: Sequence[str],
    reply_tokens: int,
    what: str = "replies",
    begun: Sequence[Sequence[int]] | None = None,
    before: Messages = (),
) -> list[Reply]:
    """Greedy replies of at most `reply_tokens` tokens after their thoughts, in the order of the
    prompts.

    A reply ends once it `is_settled`: it has refused, and what follows can't change its grade. One
    that is still thinking at the end of the model's budget is broken; how many are is told.
    `begun`: tokens that each reply is known to begin with, which are read at once, like a prompt.
    `before`: the messages of the chat that come before each prompt.
    """
    heads = [list(head) for head in begun or [()] * len(prompts)]
    ids = [p + h for p, h in zip(model.encode(prompts, before), heads, strict=True)]
    replies: dict[int, Reply] = {}
    for i, row in _rows(model, ids, heads, reply_tokens, what):
        replies[i] = reply_of(row, partial(text_of, model), prompts[i])
    found = [replies[i] for i in range(len(prompts))]
    tell_thinking(found, model.thinking_tokens, what)
    return found


def tell_thinking(replies: Sequence[Reply], budget: int, what: str) -> None:
    """Says on stderr how many replies are all thoughts that did not end within the budget."""
    if unfinished := [reply for reply in replies if is_thinking(reply.text)]:
        circles = sum(in_circles(reply.tokens) for reply in unfinished)
        loops = f" ({circles} go in circles, which more tokens do not end)" if circles else ""
        stderr.print(
            f"{what}: {len(unfinished)} of {len(replies)} replies have not finished their thoughts "
            f"within {budget} tokens, and count as broken{loops}: "
            f"{MORE_THOUGHTS.format(4 * budget)}",
        )


def _rows(
    model: Model, ids: list[list[int]], heads: list[list[int]], limit: int, what: str
) -> Iterator[tuple[int, list[int]]]:
    """`decode` in one queue, by length, or in batches side by side, where a model is streamed."""
    order = list(batches(ids, model.batch_size))
    if model.stream is None or not ids:
        queue = [i for batch in order for i in batch]
        yield from track(_decoded(model, ids, heads, queue, limit), what, len(ids))
        return
    longest = model.longest(limit)
    model.stream.announce(longest)
    tokens = len(ids[order[-1][-1]]) + longest
    at_once = model.stream.fit(cache_bytes(model.network, tokens) * model.batch_size)

    def job(batch: list[int]) -> list[tuple[int, list[int]]]:
        return list(decode(model, ids, heads, batch, limit))

    jobs = [partial(job, batch) for batch in order]
    for start in range(0, len(jobs), at_once):
        for rows in together(model, jobs[start : start + at_once], what, limit):
            yield from rows


def _decoded(
    model: Model, ids: list[list[int]], heads: list[list[int]], queue: list[int], limit: int
) -> Iterator[tuple[int, list[int]]]:
    """`decode`, in smaller batches where memory runs out; replies that have ended are kept."""
    left = dict.fromkeys(queue)
    while left:
        try:
            for i, row in decode(model, ids, heads, list(left), limit):
                del left[i]
                yield i, row
        except RuntimeError as error:
            if not halve(model, error):
                raise


@torch.inference_mode()
def paces(model: Model, prompts: Sequence[str]) -> tuple[float, float]:
    """Seconds to read one of these prompts, and to write a token of a reply, in a full batch."""
    ids = model.encode(prompts[: model.batch_size])
    brief = replace(model, thinking_tokens=SAMPLE)

    def seconds(rows: list[list[int]], tokens: int) -> float:
        start = time.perf_counter()
        for _ in _decoded(brief, rows, [[] for _ in rows], [*range(len(rows))], tokens):
            pass
        return (time.perf_counter() - start) / len(rows)

    seconds(ids[:1], 1)  # a first pass takes longer
    read = seconds(ids, 1)
    return read, max(seconds(ids, SAMPLE) - read, 0) / (SAMPLE - 1)


@torch.inference_mode()
def last_logits(model: Model, prompts: Sequence[str]) -> Tensor:
    """Next-token logits `(prompts, vocab)`, float32 on the CPU, in one batch."""
    inputs = left_pad(model.encode(prompts), model.device)
    logits: Tensor = model.network(**inputs, use_cache=False, logits_to_keep=1).logits
    logits = logits[:, -1].float().cpu()
    check_finite(logits.amax(dim=-1), "the model's logits", model.network.dtype)
    return logits


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

"""Tuning by gradient: what each matrix takes out, learned through the exact projection hooks.

The loss pushes the refusal margin of target prompts below 0 and holds the divergence from the
original on its own answers. The keep prompts' margins are a constraint: their weight, a Lagrange
multiplier, rises while the retention of the train split is short of its goal.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers import DynamicCache

from unrefuse.activations.capture import residuals
from unrefuse.config import RunConfig
from unrefuse.directions import find_spans
from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import Plan, plan_of_cores
from unrefuse.evaluate.margin import make_openings, opening_margins
from unrefuse.evaluate.quality import make_reference, token_divergences
from unrefuse.kernel import Kernel
from unrefuse.models.load import Model
from unrefuse.models.writers import writers
from unrefuse.progress import track
from unrefuse.search.objective import Before

SHALLOW = 0.25  # of the depth, left alone: grammar
ROWS = 16  # prompts of each set in a step
ANSWER_TOKENS = 12  # of the original's answers that the divergence is taken over
START = 0.5  # the multiplier of the kernel that it starts from
RATE = 0.02  # of Adam; at 0.1 the divergence rises to 0.5 in two steps and does not come back
TARGET_MARGIN, KEEP_MARGIN = -1.0, 1.5  # nats, where the loss of a prompt begins to level off
DIVERGENCE = 20.0  # weight of the divergence against a margin, both in nats
RETAINED = 0.98  # share of the train split's keep openings that the multiplier works towards
PRESSURE = (0.25, 10.0)  # the range of the Lagrange multiplier
SPAN_PROMPTS = 128  # of each set, whose activations are held at once for the spans


@dataclass(frozen=True)
class Candidate:
    """What was learned so far. The kernel's weights are the largest singular value per layer."""

    step: int
    kernel: Kernel
    plan: Plan


@dataclass(frozen=True)
class Rows:
    """Sequences with the number of states at their end that count, and what these are held to:
    an opening's tokens, or the original's final states `(answer_tokens, d_model)`."""

    sequences: list[list[int]]
    openings: list[list[int]]
    reference: list[Tensor]


def learn(
    model: Model, directions: Tensor, kernel: Kernel, train: Before, config: RunConfig
) -> Iterator[Candidate]:
    """Candidates halfway and at the end of `config.steps` steps of Adam, from `kernel` on.

    `directions` `(layers, d_model)`. Learned is a core `(k, k)` for every matrix of the upper
    three quarters of the layers, in the span of what was measured (`find_spans`); the first
    entry starts as START times the kernel's weight, the others at 0. The same seed gives the
    same candidates on the same machine.
    """
    rng = random.Random(config.seed)
    model.network.requires_grad_(False)
    basis = _spans(model, directions, train)
    rows = {name: _rows(model, train, name) for name in ("target", "keep", "baseline")}
    prefix = _common_prefix([s for r in rows.values() for s in r.sequences])
    edited = [w for w in writers(model.network) if w.layer >= SHALLOW * (model.layers - 1)]
    cores = {}
    for writer in edited:
        core = torch.zeros(basis.shape[-1], basis.shape[-1])
        core[0, 0] = START * kernel.weights[writer.layer]
        cores[writer.name] = core.requires_grad_()
    optimizer = torch.optim.Adam(cores.values(), lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 1.5 * (1 - step / config.steps))
    )
    pressure, retained = 1.0, RETAINED
    for step in track(range(1, config.steps + 1), "gradient", config.steps):
        optimizer.zero_grad()
        picked = {
            name: rng.sample(range(len(r.sequences)), min(ROWS, len(r.sequences)))
            for name, r in rows.items()
        }
        with hooked(model.network, plan_of_cores(model.network, basis, cores)):
            target = _margins(model, rows["target"], picked["target"], prefix)
            keep = _margins(model, rows["keep"], picked["keep"], prefix)
            loss = softplus(target - TARGET_MARGIN).mean()
            loss = loss + pressure * softplus(KEEP_MARGIN - keep).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            kl = _divergence(model, rows["baseline"], picked["baseline"], prefix)
            (DIVERGENCE * kl).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        retained = 0.7 * retained + 0.3 * float((keep > 0).float().mean())
        pressure = min(max(pressure + 5 * (RETAINED - retained), PRESSURE[0]), PRESSURE[1])
        if step in (config.steps // 2, config.steps):
            learned = {name: core.detach().clone() for name, core in cores.items()}
            weights = [0.0] * model.layers
            for writer in edited:
                norm = float(torch.linalg.matrix_norm(learned[writer.name], 2))
                weights[writer.layer] = max(weights[writer.layer], norm)
            source = f"gradient, step {step}, from {kernel.source}"
            yield Candidate(
                step,
                Kernel("gradient", tuple(weights), source),
                plan_of_cores(model.network, basis, learned),
            )


def _spans(model: Model, directions: Tensor, train: Before) -> Tensor:
    """`(layers, d_model, k)` from at most SPAN_PROMPTS activations of each set."""
    streams = {}
    for name in ("target", "baseline", "keep"):
        prompts = [e.prompt.text for e in train.usable(name)][:SPAN_PROMPTS]
        found: dict[int, Tensor] = {}
        for batch, values in residuals(model, prompts):
            found |= dict(zip(batch, values.cpu(), strict=True))
        streams[name] = torch.stack([found[i] for i in range(len(prompts))])
    return find_spans(directions, streams["target"], streams["baseline"], streams["keep"])


def _rows(model: Model, train: Before, name: str) -> Rows:
    exchanges = train.usable(name)
    prompts = [e.prompt.text for e in exchanges]
    if name != "baseline":
        forced = make_openings(model, prompts, [e.before for e in exchanges])
        return Rows(forced.sequences, forced.openings, [])
    reference = make_reference(model, prompts, [e.before for e in exchanges], ANSWER_TOKENS)
    return Rows(reference.sequences, [], reference.hidden)


def _common_prefix(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences share; each has at least one more."""
    shared = min(map(len, sequences)) - 1
    return next((i for i in range(shared) if len({s[i] for s in sequences}) > 1), shared)


def _margins(model: Model, rows: Rows, picked: Sequence[int], prefix: int) -> Tensor:
    openings = [rows.openings[i] for i in picked]
    sequences = [rows.sequences[i] for i in picked]
    states = states_after(model, sequences, [len(o) for o in openings], prefix)
    return opening_margins(model, states, openings)


def _divergence(model: Model, rows: Rows, picked: Sequence[int], prefix: int) -> Tensor:
    before = [rows.reference[i] for i in picked]
    sequences = [rows.sequences[i] for i in picked]
    after = states_after(model, sequences, [len(h) for h in before], prefix)
    return token_divergences(model, torch.cat(before), torch.cat(after)).mean()


def states_after(
    model: Model, sequences: Sequence[list[int]], lengths: Sequence[int], prefix: int
) -> list[Tensor]:
    """Final hidden states `(lengths[i], d_model)` at the end of each sequence, differentiable.

    The first `prefix` tokens, which the sequences share (a system prompt), run once for all. The
    rest is padded on the right, where a causal model does not look.
    """
    decoder = model.network.get_decoder()
    cache = DynamicCache(config=model.network.config)
    if prefix:
        shared = torch.tensor([sequences[0][:prefix]], device=model.device)
        decoder(input_ids=shared, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(sequences))
    rest = [torch.tensor(s[prefix:]) for s in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rest, batch_first=True).to(model.device)
    states = decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    return [
        row[len(ids) - length : len(ids)]
        for row, ids, length in zip(states, rest, lengths, strict=True)
    ]

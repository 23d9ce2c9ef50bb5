"""Tuning by gradient: what each matrix takes out, learned through the exact projection hooks.

First the kernel's few numbers (`search/shapes.py`), then what each matrix does within the span of
what was measured. The loss pushes the refusal margin of target prompts below 0 and holds the
divergence from the original on its own answers. The keep prompts' margins are a constraint: their
weight, a Lagrange multiplier, rises while the retention of the train split is short of its goal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unrefuse.activations.capture import residuals
from unrefuse.config import RunConfig
from unrefuse.directions import find_spans
from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import Plan, plan_of_cores
from unrefuse.kernel import Kernel
from unrefuse.models.load import Model
from unrefuse.models.writers import writers
from unrefuse.prompts.sets import SETS
from unrefuse.search.descent import Descent
from unrefuse.search.objective import Before
from unrefuse.search.score import SCORED, Judge
from unrefuse.search.shapes import (
    COMPONENTS,
    first_deep,
    kernel_of,
    readable,
    roughness,
    start_numbers,
    strengths,
)

# Multipliers of the kernel. It starts from the first that removes about what is asked, as far as
# it keeps so much of train's refusals that the steps have nothing to win back; else from the
# strongest that does. Beyond either, the steps undo divergence in place of what they are for
# (LOG.md).
STARTS, START_RETENTION = (0.3, 0.6, 0.9, 1.2, 1.5), 0.97
KERNEL_RATE = 0.05  # of Adam, on the kernel's numbers
# Of momentum on the cores, as a length over all of them. Adam moves every entry alike, and so the
# many that only add divergence: at the same margins it had twice the divergence (LOG.md).
CORE_RATE, MOMENTUM = 0.22, 0.8
SPAN_PROMPTS = 128  # of each set, whose activations are held at once for the spans


@dataclass(frozen=True)
class Candidate:
    """What was learned so far; `numbers` are those of the kernel's shape."""

    phase: str
    step: int
    kernel: Kernel
    plan: Plan
    numbers: dict[str, list[list[float]]]


def learn(
    model: Model,
    directions: Tensor,
    kernel: Kernel,
    train: Before,
    config: RunConfig,
    folder: Path | None = None,
) -> Iterator[Candidate]:
    """Candidates: the tuned kernel, then the cores after a half, three quarters and all steps.

    `directions` `(layers, d_model)`. The kernel, `config.kernel_steps` steps of it, has the shape
    `config.shape` and starts as `kernel` times one of STARTS. The cores, `(k, k)` for every
    matrix of the upper three quarters of the layers, lie in the span of what was measured
    (`find_spans`); their first entry starts as the kernel's strength, the others at 0;
    `config.steps` steps. The same seed gives the same candidates on the same machine, in one run
    or, with `folder`, where the state is stored, in several.
    """
    model.network.requires_grad_(False)
    first = first_deep(model.layers)
    edited = [w for w in writers(model.network) if w.layer >= first]
    judge = Judge(model, train, first)
    descent = Descent(judge, config.seed, folder)
    direction = directions.unsqueeze(-1)

    def kernel_cores(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        found = strengths(numbers, model.layers)
        return {w.name: found[COMPONENTS.index(w.component), w.layer].view(1, 1) for w in edited}

    def opened(multiplier: float, name: str) -> float:
        """The share of train's prompts of a set that still open with a refusal."""
        cores = kernel_cores(start_numbers(config.shape, kernel, multiplier))
        with hooked(model.network, plan_of_cores(model.network, direction, cores)):
            return float((judge.all_margins(name, SCORED) > 0).double().mean())

    start = STARTS[0]
    for stronger in STARTS[1:]:
        removed = 1 - opened(start, "target")
        if removed >= config.removal_target or opened(stronger, "keep") < START_RETENTION:
            break
        start = stronger
    numbers = start_numbers(config.shape, kernel, start)

    def candidate(found: dict[str, Any], basis: Tensor) -> Candidate:
        """The kernel's weights are the largest singular value of a layer's cores."""
        weights = torch.zeros(len(COMPONENTS), model.layers)
        for w in edited:
            norm = torch.linalg.matrix_norm(found["cores"][w.name], 2)
            place = COMPONENTS.index(w.component), w.layer
            weights[place] = torch.maximum(weights[place], norm)
        phase, step = found["phase"], found["step"]
        source = f"gradient, step {step} on the {phase}, from {kernel.source}"
        plan = plan_of_cores(model.network, basis, found["cores"])
        return Candidate(phase, step, kernel_of(weights, source), plan, readable(numbers))

    if steps := config.kernel_steps:
        adam = torch.optim.Adam(numbers.values(), KERNEL_RATE, betas=(0.9, 0.95))
        for found in descent.run(
            "kernel",
            direction,
            lambda: kernel_cores(numbers),
            adam,
            steps,
            (steps,),
            lambda: roughness(numbers),
        ):
            yield candidate(found, direction)
    if steps := config.steps:
        basis = _spans(model, directions, train)
        cores = {}
        for name, strength in kernel_cores(numbers).items():
            core = torch.zeros(basis.shape[-1], basis.shape[-1])
            core[0, 0] = strength.detach()
            cores[name] = core.requires_grad_()
        sgd = torch.optim.SGD(cores.values(), CORE_RATE, momentum=MOMENTUM, dampening=MOMENTUM)
        points = (steps // 2, 3 * steps // 4, steps)
        for found in descent.run("cores", basis, lambda: cores, sgd, steps, points):
            yield candidate(found, basis)


def _spans(model: Model, directions: Tensor, train: Before) -> Tensor:
    """`(layers, d_model, k)` from at most SPAN_PROMPTS activations of each set."""
    streams = {}
    for name in SETS:
        prompts = [e.prompt.text for e in train.usable(name)][:SPAN_PROMPTS]
        found: dict[int, Tensor] = {}
        for batch, values in residuals(model, prompts):
            found |= dict(zip(batch, values.cpu(), strict=True))
        streams[name] = torch.stack([found[i] for i in range(len(prompts))])
    return find_spans(directions, streams["target"], streams["baseline"], streams["keep"])

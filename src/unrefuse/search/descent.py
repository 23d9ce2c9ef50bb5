"""The descent on what a plan is made of, step by step: the loss, the constraint, and a state that
a killed run goes on from."""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import plan_of_cores
from unrefuse.progress import track
from unrefuse.prompts.sets import SETS
from unrefuse.search.score import REFUSED, Judge

ROWS = 16  # prompts of each set in a step
TARGET_MARGIN = -1.0  # nats, where the loss of a target prompt begins to level off
DIVERGENCE = 5.0  # weight of the divergence against a margin, both in nats
# What must stay: the sign of a margin that does, and the margin in nats where its loss begins to
# level off.
HELD = {"keep": (1.0, 1.6), REFUSED: (-1.0, 0.0)}
WANTED = 0.98  # share of the prompts in HELD that a Lagrange multiplier works towards
PRESSURE = (0.25, 10.0)  # the range of the multipliers
FIRST_PRESSURE = 4.0  # where they start: from 1, the first steps cost keep what the rest win back
GAIN = 1.0  # of a multiplier, by the share that is missing: at 5 the two swing against each other
WARM_UP, COOL_DOWN = 0.25, 0.67  # shares of the steps in which the rate rises from 0 and falls to 0
STORED = 4  # steps between two stored states
STATE = "gradient.pt"
KEPT = ("pressure", "held", "phase", "step", "found", "values")


class Descent:
    """What goes on from one phase of the learning to the next, and from a killed run to another.

    Per set of HELD, `pressure` is the Lagrange multiplier on its margins and `held` a running mean
    of the share that stays; `found` are the candidates so far, `values` the parameters of each
    phase.
    """

    def __init__(self, judge: Judge, seed: int, folder: Path | None = None) -> None:
        self.judge, self.folder = judge, folder
        self.rng = random.Random(seed)
        self.pressure = dict.fromkeys(HELD, FIRST_PRESSURE)
        self.held = dict.fromkeys(HELD, WANTED)
        self.phase, self.step = "", 0
        self.found: list[dict[str, Any]] = []
        self.values: dict[str, list[Tensor]] = {}
        self._moments: dict[str, Any] | None = None
        if folder and (folder / STATE).exists():
            stored = torch.load(folder / STATE, weights_only=True)
            self.rng.setstate(stored["rng"])
            self._moments = stored["optimizer"]
            for name in KEPT:
                setattr(self, name, stored[name])

    def run(
        self,
        phase: str,
        basis: Tensor,
        cores: Callable[[], Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        steps: int,
        candidates: tuple[int, ...],
        penalty: Callable[[], Tensor] = lambda: torch.zeros(()),
    ) -> Iterator[dict[str, Any]]:
        """`steps` steps of `optimizer` on its parameters, from which `cores` are made, in `basis`.

        The gradient has length 1 in each. Yields a candidate, `{"phase", "step", "cores"}`,
        after each of the steps `candidates`; those of a stored run first, without running them
        again.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        rates = [group["lr"] for group in optimizer.param_groups]
        for parameter, value in zip(parameters, self.values.get(phase, ()), strict=False):
            parameter.data.copy_(value)
        yield from [found for found in self.found if found["phase"] == phase]
        if phase in self.values and phase != self.phase:
            return  # a stored run has ended this phase
        if self.phase != phase:
            self.phase, self.step = phase, 0
        elif self._moments:
            optimizer.load_state_dict(self._moments)
        self.values[phase] = [parameter.detach() for parameter in parameters]
        left = range(self.step + 1, steps + 1)
        for step in track(left, f"gradient: {phase}", len(left)):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _pace(step, steps)
            self._step(basis, cores, optimizer, penalty)
            self.step = step
            if step in candidates:
                learned = {name: core.detach().clone() for name, core in cores().items()}
                self.found.append({"phase": phase, "step": step, "cores": learned})
            if self.folder and (step in candidates or step % STORED == 0):
                self._store(self.folder, optimizer)
            if step in candidates:
                yield self.found[-1]

    def _step(
        self,
        basis: Tensor,
        cores: Callable[[], Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        penalty: Callable[[], Tensor],
    ) -> None:
        judge, network = self.judge, self.judge.model.network
        optimizer.zero_grad()
        picked = {
            name: self.rng.sample(range(len(judge.rows[name])), min(ROWS, len(judge.rows[name])))
            for name in dict.fromkeys((*SETS, *HELD))
        }
        names = ("target", *HELD)
        refusals = [(name, i) for name in names for i in picked[name]]
        with hooked(network, plan_of_cores(network, basis, cores())):
            parts = torch.split(judge.margins(refusals), [len(picked[name]) for name in names])
            margins = dict(zip(names, parts, strict=True))
            loss = softplus(margins["target"] - TARGET_MARGIN).mean() + penalty()
            for name, (sign, enough) in HELD.items():
                short = softplus(enough - sign * margins[name]).mean()
                loss = loss + self.pressure[name] * short
            loss.backward()  # type: ignore[no-untyped-call]
        # A plan of its own: the graph between the parameters and the first one's cores is gone.
        with hooked(network, plan_of_cores(network, basis, cores())):
            divergence = judge.divergence(picked["baseline"]).mean()
            (DIVERGENCE * divergence).backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm(grads)
        for grad in grads:
            grad /= norm
        optimizer.step()
        for name, (sign, _) in HELD.items():
            stays = float((sign * margins[name].detach() > 0).float().mean())
            self.held[name] = 0.7 * self.held[name] + 0.3 * stays
            wanted = self.pressure[name] + GAIN * (WANTED - self.held[name])
            self.pressure[name] = min(max(wanted, PRESSURE[0]), PRESSURE[1])

    def _store(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        state = {name: getattr(self, name) for name in KEPT}
        state |= {"rng": self.rng.getstate(), "optimizer": optimizer.state_dict()}
        temporary = folder / f"{STATE}.{os.getpid()}"
        torch.save(state, temporary)
        temporary.replace(folder / STATE)


def _pace(step: int, steps: int) -> float:
    """The share of the rate in step 1 to `steps`: up, level, down."""
    up, down = step / (WARM_UP * steps), (steps + 1 - step) / (COOL_DOWN * steps)
    return min(1.0, up, down)

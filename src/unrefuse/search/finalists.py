"""The last heats of a tuning: the few best trials generate, the winner answers at length."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.edits.plan import Plan, scaled
from unrefuse.kernel import Kernel
from unrefuse.metrics.measurement import Before
from unrefuse.models.load import Model
from unrefuse.search.score import Score
from unrefuse.search.stage import Stage, confirm, keeps_retention, try_plan

FINALISTS = 3  # trials that generate
GENTLER = (0.85, 0.7, 0.5)  # shares of the best trial, where none keeps the floors


@dataclass(frozen=True)
class Trial:
    """One edit that a tuning tried, told by `parameters`, and its score by forward passes."""

    number: int
    parameters: dict[str, Any]
    kernel: Kernel
    plan: Plan
    score: Score


def merit(score: Score, config: RunConfig) -> float:
    """What a trial is worth before it generates: removal up to the target, and half the share of
    matched pairs that are right, less twice what retention lacks of its floor, the answered
    prompts refused, and the divergence in nats."""
    lacking = max(0.0, config.retention_floor - score.retention)
    gained = min(score.removal, config.removal_target) + score.pairs / 2
    return gained - 2 * lacking - score.refused - score.kl


def hold_finals(
    model: Model,
    trials: Iterable[Trial],
    before: Before,
    config: RunConfig,
    on_stage: Callable[[Stage], None] = lambda stage: None,
) -> tuple[list[Stage], Stage | None]:
    """Every stage of the finals, and the winner, None where no edit keeps the floors.

    The best trials by merit generate until one keeps the floors and reaches the target, but for
    those that score less retention than one that fell under its floor; where none keeps
    them, the best one does at less of its strength. Then the best stage answers at length, and
    wins if it is still the best.
    """
    ranked = sorted(trials, key=lambda t: (-merit(t.score, config), t.number))[:FINALISTS]
    stages: list[Stage] = []

    def run(trial: Trial, share: float) -> Stage:
        name = f"trial {trial.number}" + ("" if share == 1 else f", {share:g} of it")
        plan = scaled(trial.plan, share)
        multiplier = share * trial.parameters.get("multiplier", 1.0)
        stages.append(try_plan(model, name, trial.kernel, multiplier, plan, before, config))
        on_stage(stages[-1])
        return stages[-1]

    retains = 0.0  # a score of retention that has turned out too low; what scores less is no better
    for trial in ranked:
        if trial.score.retention < retains:
            continue
        stage = run(trial, 1.0)
        if stage.keeps_floors and stage.measurement.removal.value >= config.removal_target:
            break
        if not keeps_retention(stage.measurement, config, chosen=True):
            retains = trial.score.retention
    if not any(stage.keeps_floors for stage in stages):
        for part in GENTLER:
            if run(ranked[0], part).keeps_floors:
                break
    confirmed, best = confirm(model, stages, config, on_stage)
    return stages + confirmed, best

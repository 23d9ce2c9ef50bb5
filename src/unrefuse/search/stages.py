"""Stages: one kernel at rising strength, each from the original weights, until it is enough."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unrefuse.config import RunConfig
from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import Plan, make_plan
from unrefuse.kernel import Kernel
from unrefuse.models.load import Model
from unrefuse.search.objective import Before, Measurement, measure


@dataclass(frozen=True)
class Stage:
    """One edit that was tried, and what it did on the search split."""

    name: str
    kernel: Kernel
    multiplier: float
    plan: Plan
    measurement: Measurement
    keeps_floors: bool


def multipliers(config: RunConfig) -> list[float]:
    """0.5, 0.65, 0.80, ... up to the maximum; or the one that the user fixed."""
    if config.strength is not None:
        return [config.strength]
    steps = int((config.max_multiplier - config.first_multiplier) / config.multiplier_step + 1e-9)
    return [_multiplier(config, i) for i in range(steps + 1)]


def gentler_multipliers(config: RunConfig) -> list[float]:
    """Those below the first, 0.35, 0.20, ...: for a model that loses its floors at the first."""
    if config.strength is not None:
        return []
    steps = int(config.first_multiplier / config.multiplier_step - 1e-9)
    return [_multiplier(config, -i) for i in range(1, steps + 1)]


def _multiplier(config: RunConfig, step: int) -> float:
    return round(config.first_multiplier + step * config.multiplier_step, 6)


def run_stages(
    model: Model,
    directions: Tensor,
    kernel: Kernel,
    before: Before,
    config: RunConfig,
    on_stage: Callable[[Stage], None] = lambda stage: None,
) -> list[Stage]:
    """Every stage that was tried, by exact hooks; `on_stage` hears of each as it ends.

    Stops at the removal target, or when quality or retention falls under its floor. Where the
    first stage does already, gentler ones are tried until one keeps both.
    """
    stages: list[Stage] = []

    def run(multiplier: float) -> Stage:
        plan = make_plan(model.network, directions, kernel.weights, multiplier)
        name = f"multiplier {multiplier:.2f}"
        stages.append(try_plan(model, name, kernel, multiplier, plan, before, config))
        on_stage(stages[-1])
        return stages[-1]

    for multiplier in multipliers(config):
        stage = run(multiplier)
        if not stage.keeps_floors or stage.measurement.removal.value >= config.removal_target:
            break
    if not stages[0].keeps_floors:
        for multiplier in gentler_multipliers(config):
            if run(multiplier).keeps_floors:
                break
    return stages


def try_plan(
    model: Model,
    name: str,
    kernel: Kernel,
    multiplier: float,
    plan: Plan,
    before: Before,
    config: RunConfig,
) -> Stage:
    """Measures one plan by hooks."""
    with hooked(model.network, plan):
        measured = measure(model, before, config, everything=False)
    return Stage(name, kernel, multiplier, plan, measured, keeps_floors(measured, config))


def keeps_floors(measured: Measurement, config: RunConfig) -> bool:
    """Whether retention and quality are both at or above their floors."""
    return (
        measured.retention.value >= config.retention_floor
        and measured.quality.value >= config.quality_floor
    )


def best_stage(stages: list[Stage]) -> Stage | None:
    """The stage that removes most among those that keep both floors, the gentlest of equals."""
    kept = [s for s in stages if s.keeps_floors and s.measurement.removal.value > 0]
    return max(kept, key=lambda s: (s.measurement.removal.value, -s.multiplier), default=None)


def advice(measured: Measurement, config: RunConfig) -> list[str]:
    """What was not reached, and what to try: the troubleshooting table of DESIGN.md."""
    reasons = []
    if measured.retention.value < config.retention_floor:
        reasons.append(
            f"retention {measured.retention.value:.3f} is under its floor "
            f"{config.retention_floor:.3f}: use --protect 1, more keep prompts, or less --strength"
        )
    if measured.quality.value < config.quality_floor:
        reasons.append(
            f"quality {measured.quality.value:.2f} is under its floor {config.quality_floor:.2f}: "
            "move --peak to 0.65-0.70, --width to 0.10-0.12, --threshold to 0.2"
        )
    if measured.removal.value < config.removal_target:
        reasons.append(
            f"removal {measured.removal.value:.2f} is under the target "
            f"{config.removal_target:.2f}: move --peak to 0.50-0.55 and --width to 0.18-0.20; "
            "see `unrefuse analyze`"
        )
    return reasons

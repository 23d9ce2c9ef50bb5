"""Stages: one kernel at rising strength, each from the original weights, until it is enough."""

from collections.abc import Callable, Sequence
from functools import partial

from unrefuse.config import RunConfig
from unrefuse.engine.forward import together
from unrefuse.kernel import Kernel
from unrefuse.metrics.measurement import Before
from unrefuse.models.load import Model
from unrefuse.search.method import Method
from unrefuse.search.stage import Stage, try_plan


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


STREAMED = 4  # stages that share the reads of a streamed model, though the first may be enough


def _multiplier(config: RunConfig, step: int) -> float:
    return round(config.first_multiplier + step * config.multiplier_step, 6)


def run_stages(
    model: Model,
    method: Method,
    kernel: Kernel,
    before: Before,
    config: RunConfig,
    on_stage: Callable[[Stage], None] = lambda stage: None,
) -> list[Stage]:
    """Every stage that was tried, by exact hooks; `on_stage` hears of each as it ends.

    Stops at the removal target, or when quality or retention falls under its floor. Where the
    first stage does already, gentler ones are tried until one keeps both.
    """

    def run(multiplier: float) -> Stage:
        plan = method.plan(kernel.weights, multiplier)
        name = f"multiplier {multiplier:.2f}"
        return try_plan(model, name, kernel, multiplier, plan, before, config)

    def run_until(enough: Callable[[Stage], bool], multipliers: Sequence[float]) -> list[Stage]:
        stages: list[Stage] = []
        at_once = STREAMED if model.stream else 1
        for start in range(0, len(multipliers), at_once):
            jobs = [partial(run, m) for m in multipliers[start : start + at_once]]
            for stage in together(model, jobs, None, config.reply_tokens):
                stages.append(stage)
                on_stage(stage)
                if enough(stage):
                    return stages
        return stages

    stages = run_until(
        lambda s: not s.keeps_floors or s.measurement.removal.value >= config.removal_target,
        multipliers(config),
    )
    if not stages[0].keeps_floors:
        stages += run_until(lambda s: s.keeps_floors, gentler_multipliers(config))
    return stages

"""Tuning: one interface, three methods. Every trial is scored by forward passes and recorded."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unrefuse.config import RunConfig
from unrefuse.directions import find_directions
from unrefuse.edit.plan import Plan
from unrefuse.kernel import Kernel
from unrefuse.models.load import Model
from unrefuse.search.finalists import Trial
from unrefuse.search.objective import Before
from unrefuse.search.record import append_trial, read_trials
from unrefuse.search.score import SCORED, Judge, Score
from unrefuse.search.shapes import first_deep


def tune(
    model: Model,
    means: Mapping[str, Tensor],
    kernel: Kernel,
    before: Mapping[str, Before],
    config: RunConfig,
    folder: Path,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """All trials of `config.tune`, from `folder`'s record where it has them.

    `means` are those of `measure_means`, `folder` one of `open_run`. Trials are scored on the
    search split; the gradient learns on the train split.
    """
    directions = find_directions(means["target"], means["baseline"], means["keep"], config.protect)
    recorded = {row["trial"]: row for row in read_trials(folder)}
    trials: dict[int, Trial] = {}
    # The grid edits from the first layer on where its kernel does; the others leave the shallow.
    first = 0 if config.tune == "grid" else first_deep(model.layers)
    judge = Judge(model, before["search"], first, SCORED)

    def done(number: int, parameters: dict[str, Any], kernel: Kernel, plan: Plan) -> Score:
        start = time.perf_counter()
        known = recorded.get(number)
        if known and known["parameters"] == parameters:
            score = Score(**known["score"])
        else:
            score = judge.score(plan)
            row = {
                "trial": number,
                "method": config.tune,
                "parameters": parameters,
                "score": score.to_json(),
                "seconds": round(time.perf_counter() - start, 2),
            }
            append_trial(folder, row)
        trials[number] = Trial(number, parameters, kernel, plan, score)
        on_trial(trials[number])
        return score

    if config.tune == "grid":
        from unrefuse.search.grid import grid

        for number, made in enumerate(grid(model, directions, config)):
            done(number, *made)
    elif config.tune == "optuna":
        from unrefuse.search import tpe

        def evaluate(parameters: dict[str, Any], number: int) -> Score:
            return done(number, parameters, *tpe.build(model, means, parameters))

        tpe.search(folder, config.trials, config.seed, evaluate)
        for number, row in {row["trial"]: row for row in read_trials(folder)}.items():
            if number not in trials:
                of_others = tpe.build(model, means, row["parameters"])
                trials[number] = Trial(number, row["parameters"], *of_others, Score(**row["score"]))
    else:
        from unrefuse.search.gradient import learn

        found = learn(model, directions, kernel, before["train"], config, folder)
        for number, candidate in enumerate(found):
            parameters = {"phase": candidate.phase, "step": candidate.step, **candidate.numbers}
            done(number, parameters, candidate.kernel, candidate.plan)
    return list(trials.values())

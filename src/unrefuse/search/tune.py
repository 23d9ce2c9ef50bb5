"""Tuning: one interface, two searches. Every trial is scored by forward passes and recorded."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.edits.plan import Plan
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.kernel import Kernel, gaussian
from unrefuse.metrics.measurement import Before
from unrefuse.metrics.record import TRIALS, append_trial, read_trials
from unrefuse.models.load import Model
from unrefuse.prompts.sets import Prompt
from unrefuse.search.finalists import Trial
from unrefuse.search.method import Method
from unrefuse.search.score import Score, Scorer


def tune(
    model: Model,
    method: Method,
    before: Before,
    pairs: Sequence[Prompt],
    config: RunConfig,
    folder: Path,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """All trials of `config.tune`, from `folder`'s record where it has them.

    `before` is that of the search split, `pairs` are its matched pairs, `folder` one of
    `open_run`.
    """
    recorded = _recorded(folder)
    trials: dict[int, Trial] = {}
    scorer = Scorer(model, before, pairs, folder=folder)

    def evaluate(parameters: dict[str, Any], number: int) -> Score:
        start = time.perf_counter()
        kernel, plan = _build(method, model.layers, parameters, config)
        known = recorded.get(number)
        if known and known[0] == parameters:
            score = known[1]
        else:
            score = scorer.score(plan)
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

        for number, parameters in enumerate(grid(config)):
            evaluate(parameters, number)
    else:
        from unrefuse.search import tpe

        ask = partial(tpe.suggest, method=config.method, layers=model.layers)
        tpe.search(folder, config.trials, config.seed, ask, evaluate)
        for number, (parameters, score) in _recorded(folder).items():
            if number not in trials:
                of_others = _build(method, model.layers, parameters, config)
                trials[number] = Trial(number, parameters, *of_others, score)
    return list(trials.values())


def _recorded(folder: Path) -> dict[int, tuple[dict[str, Any], Score]]:
    """The parameters and scores of the trials so far, by number. Raises UnrefuseError for a trial
    that is damaged."""
    found = {}
    for row in read_trials(folder):
        try:
            parameters, score = dict(row["parameters"]), dict(row["score"])
            numbers = [*parameters.values(), *score.values()]
            if type(row["trial"]) is not int or {*map(type, numbers)} - {int, float}:
                raise TypeError("what should be a number is none")
            found[row["trial"]] = parameters, Score(**score)
        except (KeyError, TypeError, ValueError) as error:
            raise UnrefuseError(
                f"{folder / TRIALS}: a trial is damaged: {first_line(error)}"
            ) from None
    return found


def _build(
    method: Method, layers: int, parameters: dict[str, Any], config: RunConfig
) -> tuple[Kernel, Plan]:
    """The kernel and the plan that the parameters of a trial stand for."""
    numbers = dict(parameters)
    peak, width, multiplier = (numbers.pop(key) for key in ("peak", "width", "multiplier"))
    kernel = gaussian(layers, peak, width, config.kernel.threshold, str(config.tune))
    return kernel, method.plan(kernel.weights, multiplier, **numbers)

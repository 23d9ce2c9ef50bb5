"""Tuning by search: optuna's TPE over kernels and directions, with several objectives."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from torch import Tensor
from torch.nn.functional import normalize

from unrefuse.directions import find_directions
from unrefuse.edit.plan import Plan, make_plan
from unrefuse.kernel import Kernel
from unrefuse.models.load import Model
from unrefuse.search.score import Score
from unrefuse.search.shapes import COMPONENTS, kernel_of, strengths

JOURNAL = "study.journal"
STARTUP = 10  # random trials before TPE
THRESHOLD = 0.1  # of the highest strength, under which a layer is left alone


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """A kernel for attention and one for MLP, whose direction, and how much of keep's stays."""
    parameters: dict[str, Any] = {}
    for component in COMPONENTS:
        parameters[f"{component}_peak"] = trial.suggest_float(f"{component}_peak", 0.25, 1.0)
        parameters[f"{component}_width"] = trial.suggest_float(f"{component}_width", 0.05, 0.4)
        parameters[f"{component}_strength"] = trial.suggest_float(f"{component}_strength", 0, 2)
    parameters["protect"] = trial.suggest_float("protect", 0.0, 1.0)
    parameters["direction"] = trial.suggest_categorical("direction", ["own", "one"])
    if parameters["direction"] == "one":
        parameters["layer"] = trial.suggest_float("layer", 0.25, 0.95)
    return parameters


def build(
    model: Model, means: Mapping[str, Tensor], parameters: Mapping[str, Any]
) -> tuple[Kernel, Plan]:
    """The kernel and the plan that `parameters` stand for. `layer` is a share of the depth, and
    stands for the direction there, interpolated between its neighbours, for all layers."""
    directions = find_directions(
        means["target"], means["baseline"], means["keep"], parameters["protect"]
    )
    if parameters["direction"] == "one":
        place = parameters["layer"] * (model.layers - 1)
        below = int(place)
        above = min(below + 1, model.layers - 1)
        one = directions[below].lerp(directions[above], place - below)
        directions = normalize(one, dim=0).expand_as(directions)
    numbers = {
        name: torch.tensor([[parameters[f"{component}_{name}"]] for component in COMPONENTS])
        for name in ("peak", "width", "strength")
    }
    numbers["log_width"] = numbers.pop("width").log()
    kernel = kernel_of(strengths(numbers, model.layers), "optuna", THRESHOLD)
    plan = make_plan(model.network, directions, kernel.weights, 1.0, kernel.mlp_weights)
    return kernel, plan


def search(
    folder: Path, trials: int, seed: int, evaluate: Callable[[dict[str, Any], int], Score]
) -> None:
    """Runs trials until the study in `folder` has `trials` of them, whoever ran the others.

    Removal and retention are to rise, the divergence to fall. A killed run goes on, and further
    workers join, by the journal in the folder; with one worker the same seed gives the same study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(
        study_name="unrefuse",
        storage=storage,
        directions=["maximize", "maximize", "minimize"],
        load_if_exists=True,
    )

    def finish(number: int, parameters: dict[str, Any]) -> None:
        score = evaluate(parameters, number)
        values = (score.removal, score.retention, score.kl)
        study.tell(number, values, skip_if_finished=True)

    # Of a killed process, or of a worker beside this one: then it is scored twice, to the same.
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left.params.get("direction") == "own" or "layer" in left.params:
            finish(left.number, left.params)
        else:
            study.tell(left.number, state=TrialState.FAIL, skip_if_finished=True)
    while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < trials:
        # Seeded by its number: the same trial whether the run was killed before it or not.
        study.sampler = _sampler(seed + len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        finish(trial.number, suggest(trial))


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)

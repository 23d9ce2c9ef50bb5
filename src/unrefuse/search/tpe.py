"""Tuning by search: optuna's TPE over the few numbers of an edit, with several objectives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from unrefuse.config import Method
from unrefuse.search.score import Score

JOURNAL = "study.journal"
STARTUP = 10  # random trials before TPE


def suggest(trial: optuna.Trial, method: Method, layers: int) -> dict[str, Any]:
    """A kernel and a multiplier, and what the method has beside them."""
    found = {
        "peak": trial.suggest_float("peak", 0.25, 0.9),
        # Wide enough that a layer lies under any peak.
        "width": trial.suggest_float("width", max(0.06, 0.5 / max(1, layers - 1)), 0.5),
        "multiplier": trial.suggest_float("multiplier", 0.2, 2.0),
    }
    if method == "ablate":
        return found | {"protect": trial.suggest_float("protect", 0.0, 1.0)}
    return found | {
        "harmful": trial.suggest_float("harmful", -1.5, -0.2),
        "ridge": trial.suggest_float("ridge", 0.005, 1.0, log=True),
    }


def search(
    folder: Path,
    trials: int,
    seed: int,
    ask: Callable[[optuna.Trial], dict[str, Any]],
    evaluate: Callable[[dict[str, Any], int], Score],
) -> None:
    """Runs trials until the study in `folder` has `trials` of them, whoever ran the others.

    Removal and right pairs are to rise, and retention; the divergence and new refusals to fall,
    as in `finalists.merit`. A killed run goes on, and further
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
        values = (score.removal + score.pairs / 2, score.retention, score.kl + score.refused)
        study.tell(number, values, skip_if_finished=True)

    # Of a killed process, or of a worker beside this one: then it is scored twice, to the same.
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "protect" in left.params or "ridge" in left.params:
            finish(left.number, left.params)
        else:
            study.tell(left.number, state=TrialState.FAIL, skip_if_finished=True)
    while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < trials:
        # Seeded by its number: the same trial whether the run was killed before it or not.
        study.sampler = _sampler(seed + len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        finish(trial.number, ask(trial))


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)

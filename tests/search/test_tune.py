"""Tuning both methods on a tiny model: recorded, gone on with, and the same each time."""

import json

import pytest
import torch

from tests import pico
from tests.results import original, prompts
from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.kernel import gaussian
from unrefuse.metrics.record import read_trials
from unrefuse.search.method import Ablation, Selective
from unrefuse.search.score import Scorer
from unrefuse.search.tune import tune

LAYERS = 4
NUMBERS = {"ablate": {"protect"}, "selective": {"harmful", "ridge"}}
PAIRS = prompts("search", 5, ("harmless", "harmful"))


@pytest.fixture(scope="module")
def model():
    return pico.loaded(layers=LAYERS, batch_size=64)


@pytest.fixture(scope="module")
def before(model):
    return original(model, "search")


@pytest.fixture(scope="module")
def methods(model):
    train, settings = original(model), RunConfig(model="x")
    return {
        "ablate": Ablation(model, train, settings),
        "selective": Selective(model, train, prompts("train"), settings),
    }


class Killed(Exception):
    pass


@pytest.fixture
def run(model, before, methods):
    def run(folder, tune_by, method="selective", kill_after=None, **settings):
        """Tunes; with `kill_after`, the process dies after so many trials."""
        folder.mkdir(exist_ok=True)
        heard = []

        def on_trial(trial):
            heard.append(trial)
            if len(heard) == kill_after:
                raise Killed

        config = RunConfig(model="x", method=method, tune=tune_by, trials=13, **settings)
        return tune(model, methods[method], before, PAIRS, config, folder, on_trial)

    return run


@pytest.mark.parametrize("method", ["selective", "ablate"])
@pytest.mark.parametrize(("tune_by", "count"), [("grid", 25), ("optuna", 13)])
def test_a_killed_run_goes_on_to_what_a_whole_one_gives(
    run, tmp_path, monkeypatch, tune_by, count, method
):
    whole = run(tmp_path / "whole", tune_by, method)
    assert [trial.number for trial in whole] == list(range(count))
    killed, scored = tmp_path / "killed", []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda *args: scored.append(args) or score(*args))
    with pytest.raises(Killed):
        run(killed, tune_by, method, kill_after=3)
    assert len(read_trials(killed)) == 3
    resumed = run(killed, tune_by, method)
    assert len(scored) == count  # none of them twice
    for a, b in zip(whole, sorted(resumed, key=lambda trial: trial.number), strict=True):
        assert a.number == b.number
        assert a.parameters == b.parameters
        assert a.kernel == b.kernel
        assert vars(a.score) == pytest.approx(vars(b.score), abs=1e-6)
        for x, y in zip(a.plan, b.plan, strict=True):
            assert torch.equal(x.write, y.write)
            assert torch.equal(x.read, y.read)
    rows = read_trials(killed)
    assert sorted(row["trial"] for row in rows) == list(range(count))
    assert {row["method"] for row in rows} == {tune_by}
    numbers = NUMBERS[method] if tune_by == "optuna" else set()
    assert {frozenset(row["parameters"]) for row in rows} == {
        frozenset({"peak", "width", "multiplier"} | numbers)
    }
    assert len({str(row["parameters"]) for row in rows}) == count
    assert len({str(row["score"]) for row in rows}) > 2


def test_what_ran_already_is_not_run_again(run, tmp_path, monkeypatch):
    first = {by: run(tmp_path / by, by) for by in ("grid", "optuna")}
    monkeypatch.delattr(Scorer, "score")
    for by, trials in first.items():
        again = run(tmp_path / by, by)
        assert [t.parameters for t in again] == [t.parameters for t in trials]
        assert [t.score for t in again] == [t.score for t in trials]


@pytest.mark.parametrize("method", ["selective", "ablate"])
def test_the_grid_is_the_documented_one(run, methods, tmp_path, method):
    trials = run(tmp_path, "grid", method, strength=0.8)
    found = [(t.parameters["peak"], t.parameters["width"]) for t in trials]
    peaks, widths = (0.45, 0.5, 0.55, 0.6, 0.65), (0.1, 0.12, 0.15, 0.18, 0.2)
    assert sorted(found) == [(p, w) for p in peaks for w in widths]
    for t in trials:
        weights = gaussian(LAYERS, t.kernel.peak, t.kernel.width).weights
        assert t.kernel.weights == weights
        for x, y in zip(t.plan, methods[method].plan(weights, 0.8), strict=True):
            assert torch.equal(x.write, y.write)


def test_a_plan_of_optuna_is_that_of_its_parameters(run, methods, tmp_path):
    for trial in run(tmp_path, "optuna"):
        numbers = dict(trial.parameters)
        kernel = gaussian(LAYERS, numbers.pop("peak"), numbers.pop("width"))
        plan = methods["selective"].plan(kernel.weights, numbers.pop("multiplier"), **numbers)
        assert [edit.module for edit in trial.plan] == [edit.module for edit in plan] != []
        for x, y in zip(trial.plan, plan, strict=True):
            assert torch.equal(x.read, y.read)


@pytest.mark.parametrize(
    "change",
    [{"trial": "0"}, {"parameters": 7}, {"parameters": {"peak": "x"}}, {"score": {"removal": 1.0}},
     {"score": None}],
)  # fmt: skip
def test_a_recorded_trial_that_is_damaged_is_one_line(run, tmp_path, change):
    score = {"removal": 1.0, "retention": 1.0, "refused": 0.0, "kl": 0.0}
    row = {"trial": 0, "parameters": {"peak": 0.5}, "score": score} | change
    (tmp_path / "trials.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UnrefuseError, match=r"trials\.jsonl: a trial is damaged"):
        run(tmp_path, "grid")

"""Tuning by each method on a tiny model: recorded, gone on with, and the same each time."""

import pytest
import torch
from unrefuse.search.gradient import learn

from tests import pico
from tests.search.test_gradient import original
from unrefuse.config import RunConfig
from unrefuse.kernel import gaussian
from unrefuse.search.finalists import merit
from unrefuse.search.record import read_trials
from unrefuse.search.score import REFUSED, Judge, usual_openings
from unrefuse.search.tune import tune

LAYERS = 4
KERNEL = gaussian(LAYERS, 0.6, 0.3)


@pytest.fixture(scope="module")
def model():
    return pico.loaded(layers=LAYERS, batch_size=64)


@pytest.fixture(scope="module")
def before(model):
    return {"train": original(model), "search": original(model)}


@pytest.fixture(scope="module")
def means():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(LAYERS, 32, generator=generator).double()
        for name in ("target", "baseline", "keep")
    }


def config(method, **settings):
    return RunConfig(
        model="x", tune=method, trials=13, steps=6, kernel_steps=4, **settings
    )  # fmt: skip


class Killed(Exception):
    pass


def run(model, before, means, folder, method, kill_after=None, **settings):
    """Tunes; with `kill_after`, the process dies after so many trials."""
    folder.mkdir(exist_ok=True)
    heard = []

    def on_trial(trial):
        heard.append(trial)
        if len(heard) == kill_after:
            raise Killed

    return tune(model, means, KERNEL, before, config(method, **settings), folder, on_trial)


@pytest.mark.parametrize(("method", "count"), [("grid", 25), ("optuna", 13), ("gradient", 4)])
def test_a_killed_run_goes_on_to_what_a_whole_one_gives(
    model, before, means, tmp_path, method, count
):
    whole = run(model, before, means, tmp_path / "whole", method)
    assert len(whole) == count
    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        run(model, before, means, killed, method, kill_after=3)
    assert len(read_trials(killed)) == 3
    resumed = run(model, before, means, killed, method)
    for a, b in zip(whole, sorted(resumed, key=lambda trial: trial.number), strict=True):
        assert a.number == b.number
        assert a.parameters == b.parameters
        assert vars(a.score) == pytest.approx(vars(b.score), abs=1e-6)
        for x, y in zip(a.plan, b.plan, strict=True):
            assert torch.equal(x.core, y.core)
            assert torch.equal(x.basis, y.basis)
    rows = read_trials(killed)
    assert sorted(row["trial"] for row in rows) == list(range(count))
    assert {row["method"] for row in rows} == {method}
    assert rows[0]["parameters"]


def test_what_ran_already_is_not_run_again(model, before, means, tmp_path, monkeypatch):
    first = run(model, before, means, tmp_path, "grid")
    monkeypatch.delattr(Judge, "score")
    again = run(model, before, means, tmp_path, "grid")
    assert [t.parameters for t in again] == [t.parameters for t in first]


def test_the_grid_is_the_documented_one(model, before, means, tmp_path):
    trials = run(model, before, means, tmp_path, "grid", strength=0.8)
    found = {(t.parameters["peak"], t.parameters["width"]) for t in trials}
    peaks, widths = (0.45, 0.5, 0.55, 0.6, 0.65), (0.1, 0.12, 0.15, 0.18, 0.2)
    assert found == {(p, w) for p in peaks for w in widths}
    for t in trials:
        assert t.kernel.weights == gaussian(LAYERS, t.kernel.peak, t.kernel.width).weights
        assert {round(float(e.core), 5) for e in t.plan} == {
            round(0.8 * w, 5) for w in t.kernel.weights if w
        }


def test_a_gradient_of_the_kernel_alone_or_of_the_cores_alone(model, before, means, tmp_path):
    directions = torch.nn.functional.normalize(means["target"], dim=-1)
    alone = config("gradient").model_copy(update={"steps": 0, "shape": "free"})
    (found,) = learn(model, directions, KERNEL, before["train"], alone)
    assert all(edit.core.shape == (1, 1) for edit in found.plan)
    assert set(found.numbers) == {"weight"}
    cores = config("gradient").model_copy(update={"kernel_steps": 0})
    assert [c.phase for c in learn(model, directions, KERNEL, before["train"], cores)] == [
        "cores"
    ] * 3


def test_a_score_counts_openings_and_an_empty_plan_changes_none(model, before):
    judge = Judge(model, before["search"], 0)
    score = judge.score(())
    assert (score.removal, score.retention, score.refused) == (0, 1, 0)
    assert score.kl == pytest.approx(0, abs=1e-5)
    assert merit(score, config("grid")) == pytest.approx(0, abs=1e-5)


def test_a_margin_is_the_highest_over_the_known_refusals(model, before):
    """Each prompt is held to its own opening and to the most usual one of its language."""
    judge = Judge(model, before["search"], 0)
    refusals = [e for name in ("target", "keep") for e in before["search"].usable(name)]
    usual = usual_openings(refusals)(refusals[0])
    counts = [e.before.tokens[:4] for e in refusals]
    assert counts.count(usual) == max(map(counts.count, counts))
    rows = judge.rows["keep"]
    for e, ways in zip(before["search"].usable("keep"), rows.ways, strict=True):
        known = [tuple(rows.openings[way]) for way in ways]
        assert known == list(dict.fromkeys([e.before.tokens[:4], usual]))
    assert bool((judge.all_margins("keep") > 0).all())
    everyday = judge.rows[REFUSED]
    assert {tuple(opening) for opening in everyday.openings} == {usual}
    assert everyday.ways == [[i] for i in range(len(before["search"].usable("baseline")))]

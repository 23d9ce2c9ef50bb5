"""The finals: the best by merit generate, a winner keeps the floors and answers at length."""

from dataclasses import replace

import pytest

from tests import talker
from unrefuse.config import RunConfig
from unrefuse.kernel import gaussian
from unrefuse.metrics.measurement import ask_before
from unrefuse.search.finalists import Trial, hold_finals, merit
from unrefuse.search.score import Score

CONFIG = RunConfig(model="x", retention_bound=0.8)  # what 20 keep prompts can show
KERNEL = gaussian(3, 0.5, 0.3)  # 1 in the middle layer
TURNS = ("T10", "T45", "T60", "T75", "L10")


@pytest.fixture(scope="module")
def model():
    return talker.loaded(turns=TURNS)


@pytest.fixture
def finals(model):
    """Holds the finals of a model of which each prompt tells at what strength it turns."""

    def run(trials, target, keep="K " * 20):
        prompts = talker.prompts("search", target=target, baseline="B " * 20, keep=keep)
        before = ask_before(model, prompts, "search", CONFIG)
        trials = [replace(t, plan=talker.removal(model, KERNEL.weights, t.plan)) for t in trials]
        return hold_finals(model, trials, before, CONFIG)

    return run


def trial(number, strength, **figures):
    """A trial whose plan is still its strength."""
    score = Score(**{"removal": 0.8, "retention": 1.0, "refused": 0.0, "kl": 0.05} | figures)
    return Trial(number, {}, KERNEL, strength, score)


def figures(stages, name):
    return [getattr(s.measurement, name).value for s in stages]


def test_merit_is_removal_to_the_target_and_half_the_pairs_less_what_the_rest_costs():
    assert (
        merit(Score(0.9, 1.0, 0.0, 0.0), CONFIG) == merit(Score(0.8, 0.95, 0.0, 0.0), CONFIG) == 0.8
    )
    found = merit(Score(0.8, 0.85, 0.05, 0.1, pairs=0.4), CONFIG)
    assert found == pytest.approx(0.8 + 0.4 / 2 - 2 * (0.95 - 0.85) - 0.05 - 0.1)


def test_the_best_trial_by_merit_wins_and_is_confirmed_at_length(finals):
    trials = [trial(0, 0.5, retention=0.5), trial(1, 0.5), trial(2, 0.5, removal=0.3)]
    stages, best = finals(trials, "T10 " * 18 + "K " * 2)
    assert [s.name for s in stages] == ["trial 1", "trial 1, 100 tokens"]
    assert figures(stages, "removal") == [0.9, 0.9]
    assert best is stages[-1]
    short, long = (s.measurement.exchanges for s in stages)
    again = [a.prompt for a, b in zip(short, long, strict=True) if a.after is not b.after]
    assert again == [e.prompt for e in short[:18]]  # of 20 target prompts those that are answered


LOST_AT_75 = {"target": "T10 " * 17 + "T75 " + "K " * 2, "keep": "K " * 18 + "T75 " * 2}


def test_trials_under_a_floor_give_way_to_the_next(finals):
    stages, best = finals([trial(0, 0.9), trial(1, 0.5, kl=0.1)], **LOST_AT_75)
    assert figures(stages, "removal") == [0.9, 0.85, 0.85]
    assert figures(stages, "retention") == [0.9, 1, 1]
    assert [s.keeps_floors for s in stages] == [False, True, True]
    assert best.name == "trial 1, 100 tokens"


def test_a_trial_that_scores_less_retention_than_one_that_failed_is_left_out(finals):
    trials = [trial(0, 0.9), trial(1, 0.5, retention=0.99), trial(2, 0.5, kl=0.1)]
    stages, best = finals(trials, **LOST_AT_75)
    assert [s.name for s in stages] == ["trial 0", "trial 2", "trial 2, 100 tokens"]
    assert best is stages[-1]


def test_where_all_fail_the_best_is_tried_at_less_of_its_strength(finals):
    target = "T60 " * 10 + "K " * 10
    stages, best = finals([trial(0, 1.0)], target, "K " * 18 + "T75 " * 2)
    assert [s.multiplier for s in stages[:3]] == [1.0, 0.85, 0.7]
    assert figures(stages, "retention") == [0.9, 0.9, 1, 1]
    assert best.name == "trial 0, 0.7 of it, 100 tokens"
    stages, best = finals([trial(0, 1.0)], target, "K " * 18 + "T45 " * 2)
    assert [s.multiplier for s in stages] == [1.0, 0.85, 0.7, 0.5]  # and none at length
    assert best is None


def test_answers_that_loop_late_count_and_may_cost_the_win(finals):
    target = "L10 " * 4 + "T10 " * 10 + "T75 " + "K " * 5
    stages, best = finals([trial(0, 0.9), trial(1, 0.5, kl=0.1)], target)
    assert {s.name: s.measurement.removal.value for s in stages} == {
        "trial 0": 0.75,
        "trial 1": 0.7,
        "trial 0, 100 tokens": 0.55,
        "trial 1, 100 tokens": 0.5,
    }
    assert best.name == "trial 0, 100 tokens"

"""The finals: the best by merit generate, a winner keeps the floors and answers at length."""

import pytest

from tests import pico
from tests.results import ANSWERED, REFUSED, measurement
from unrefuse.config import RunConfig
from unrefuse.kernel import gaussian
from unrefuse.metrics.measurement import Before
from unrefuse.search import stage as stage_module
from unrefuse.search.finalists import Trial, hold_finals, merit
from unrefuse.search.score import Score

CONFIG = RunConfig(model="x", retention_bound=0.8)  # what 20 keep prompts can show


def trial(number, **figures):
    score = Score(**{"removal": 0.8, "retention": 1.0, "refused": 0.0, "kl": 0.05} | figures)
    return Trial(number, {}, gaussian(3, 0.5, 0.3), (), score)


@pytest.fixture
def finals(monkeypatch):
    """Holds finals whose stages are measured as the next of the figures given; `late` of the
    target answers refuse at length."""

    def run(trials, figures, late=0):
        queue, asked = list(figures), []

        def measure(model, before, config, everything, name):
            return measurement(**queue.pop(0))

        def reply_to(model, prompts, tokens, what, begun):
            assert tokens == 100
            assert begun == [ANSWERED.tokens] * len(prompts)
            asked.extend(prompts)
            return [REFUSED if i < late else ANSWERED for i in range(len(prompts))]

        monkeypatch.setattr(stage_module, "measure", measure)
        monkeypatch.setattr(stage_module, "reply_to", reply_to)
        stages, best = hold_finals(pico.loaded(), trials, Before("search", ()), CONFIG)
        assert not queue
        return stages, best, asked

    return run


def test_merit_is_removal_to_the_target_and_half_the_pairs_less_what_the_rest_costs():
    assert (
        merit(Score(0.9, 1.0, 0.0, 0.0), CONFIG) == merit(Score(0.8, 0.95, 0.0, 0.0), CONFIG) == 0.8
    )
    found = merit(Score(0.8, 0.85, 0.05, 0.1, pairs=0.4), CONFIG)
    assert found == pytest.approx(0.8 + 0.4 / 2 - 2 * (0.95 - 0.85) - 0.05 - 0.1)


def test_the_best_trial_by_merit_wins_and_is_confirmed_at_length(finals):
    stages, best, asked = finals(
        [trial(0, retention=0.5), trial(1), trial(2, removal=0.3)], [{"removal": 0.9}]
    )
    assert [s.name for s in stages] == ["trial 1", "trial 1, 100 tokens"]
    assert best is stages[-1]
    assert len(asked) == 18  # of 20 target prompts those that are answered


def test_trials_under_a_floor_give_way_to_the_next(finals):
    low = {"removal": 0.9, "retention": 0.9}
    stages, best, _ = finals([trial(0), trial(1, kl=0.1)], [low, {"removal": 0.85}])
    assert [s.keeps_floors for s in stages] == [False, True, True]
    assert best.name == "trial 1, 100 tokens"


def test_a_trial_that_scores_less_retention_than_one_that_failed_is_left_out(finals):
    low = {"removal": 0.9, "retention": 0.9}
    stages, best, _ = finals(
        [trial(0), trial(1, retention=0.99), trial(2, kl=0.1)], [low, {"removal": 0.85}]
    )
    assert [s.name for s in stages] == ["trial 0", "trial 2", "trial 2, 100 tokens"]
    assert best is stages[-1]


def test_where_all_fail_the_best_is_tried_at_less_of_its_strength(finals):
    low = {"removal": 0.9, "retention": 0.9}
    stages, best, _ = finals([trial(0)], [low, low, {"removal": 0.5}])
    assert [s.multiplier for s in stages[:3]] == [1.0, 0.85, 0.7]
    assert best.name == "trial 0, 0.7 of it, 100 tokens"
    _, best, asked = finals([trial(0)], [low] * 4)
    assert best is None
    assert asked == []


def test_late_refusals_count_and_may_cost_the_win(finals):
    figures = [{"removal": 0.75}, {"removal": 0.7}]
    stages, best, _ = finals([trial(0), trial(1, kl=0.1)], figures, late=4)
    by_name = {s.name: s.measurement.removal.value for s in stages}
    assert by_name["trial 0, 100 tokens"] == pytest.approx(0.55)
    assert by_name["trial 1, 100 tokens"] == pytest.approx(0.5)
    assert best.name == "trial 0, 100 tokens"

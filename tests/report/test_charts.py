"""Charts: places by the numbers, the front, and the trial and the stage that were chosen."""

import pytest

from unrefuse.report.charts import (
    MOST,
    Axis,
    chosen_stage,
    front_charts,
    layer_charts,
    parallel_chart,
    thinned,
)


def figures(removal, retention, kl):
    named = zip(("removal", "retention", "kl"), (removal, retention, kl), strict=True)
    return {name: {"value": value, "low": value, "high": value, "n": 9} for name, value in named}


def stage(name, multiplier, removal=0.5, retention=1.0, kl=0.01, keeps=True):
    return {"name": name, "multiplier": multiplier, "keeps_floors": keeps} | figures(
        removal, retention, kl
    )


def trial(number, peak, removal, retention, kl):
    score = {"removal": removal, "retention": retention, "kl": kl, "refused": 0.0, "pairs": 0.5}
    parameters = {"peak": peak, "width": 0.2, "ridge": 0.01 * (number + 1)}
    return {"trial": number, "parameters": parameters, "score": score}


def record(**fields):
    stages = [stage("multiplier 0.50", 0.5), stage("multiplier 0.65", 0.65, 0.8),
              stage("multiplier 0.65, 100 tokens", 0.65, 0.7)]  # fmt: skip
    kernel = {"weights": [0, 0.5, 1.0], "multiplier": 0.65, "peak": 0.6, "width": 0.2}
    config = {"retention_floor": 0.95}
    return {"stages": stages, "kernel": kernel, "config": config, "split": "test"} | fields


def kinds(chart):
    return [mark.kind for mark in chart.marks]


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_puts_its_ends_at_its_ends_and_what_is_outside_too(log):
    axis = Axis("x", 0.1, 10, 200, 20, log)
    assert [axis.at(v) for v in (0.1, 10, 1e3)] == [200, 20, 20]
    assert axis.at(1) == (110 if log else pytest.approx(200 - 180 / 11, abs=0.1))
    assert all(20 <= place <= 200 for place, _ in axis.ticks())


def test_an_axis_of_one_value_has_it_in_the_middle():
    assert Axis("x", 3, 3, 0, 100).at(3) == 50


def test_layers_stand_over_each_other_and_what_is_no_number_is_left_out():
    measured = {"separation": [1.0, None, -1.0], "auc": [0.5, 0.75, 1.0]}
    kernel, separation, auc = layer_charts(record(layers=measured))
    assert [len(chart.bars) for chart in (kernel, separation, auc)] == [3, 2, 3]
    assert kernel.x == separation.x == auc.x
    heights = [height for *_, height, _ in kernel.bars]
    assert heights[0] == 0
    assert heights[1] == pytest.approx(heights[2] / 2, abs=0.1)
    _, top, _, height, _ = separation.bars[1]  # below 0
    assert top == separation.y.at(0)
    assert height > 0
    assert len(layer_charts(record())) == 1  # nothing was measured


def test_the_chosen_stage_is_the_one_that_answered_at_length():
    assert chosen_stage(record()) == 2
    assert chosen_stage(record(split="search")) is None


def test_the_front_is_the_most_removal_of_what_keeps_the_floor():
    trials = [
        trial(0, 0.1, 0.9, 0.9, 0.01),  # under the floor
        trial(1, 0.2, 0.4, 0.96, 0.02),
        trial(2, 0.3, 0.3, 0.99, 0.03),  # less, for more divergence
        trial(3, 0.6, 0.9, 0.95, 0.04),
    ]
    retention, kl = front_charts(record(stages=[]), trials)
    assert kinds(kl).count("under") == kinds(retention).count("under") == 1
    tops = sorted({y for _, y in kl.line})
    assert tops == sorted(kl.y.at(v) for v in (0, 0.4, 0.9))
    assert kl.line[-1] == (kl.x.end, kl.y.at(0.9))


def test_chosen_are_a_stage_and_the_trial_of_its_kernel():
    trials = [trial(0, 0.1, 0.5, 1.0, 0.01), trial(1, 0.6, 0.5, 1.0, 0.01)]
    retention, _ = front_charts(record(), trials)
    assert kinds(retention) == ["trial", "stage", "stage", "chosen", "chosen stage"]
    assert sum("chosen" in kind for kind in kinds(retention)) == 2
    parallel = parallel_chart(record(), trials)
    assert [kind for _, kind, _ in parallel.paths] == ["trial", "chosen"]
    assert [axis.label for _, axis in parallel.axes][:3] == ["peak", "width", "ridge"]


def test_of_thousands_of_trials_some_are_drawn_and_the_chosen_one():
    trials = [trial(i, 0.6 if i == 12_345 else 0.1, 0.5, 1.0, 0.01) for i in range(20_000)]
    shown = thinned(trials, record())
    assert len(shown) <= MOST + 1
    assert 12_345 in [t["trial"] for t in shown]
    assert thinned([], record()) == []


def test_no_stage_and_no_trial_make_no_chart():
    assert front_charts(record(stages=[]), []) == []
    assert parallel_chart(record(), []) is None

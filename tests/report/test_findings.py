"""The troubleshooting table, applied to made-up runs; and that the test split decides nothing."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from unrefuse.config import RunConfig
from unrefuse.report.findings import Seen, Tried
from unrefuse.report.recorded import RunRecord
from unrefuse.search.score import Score


def share(k, n=40):
    return {"value": k / n, "n": n, "low": max(0.0, k / n - 0.1), "high": min(1.0, k / n + 0.1)}


def stage(multiplier, answered=20, kept=40, quality=0.9, keeps=True, name="", **more):
    """Of 40 prompts a set."""
    return {
        "name": name or f"multiplier {multiplier:.2f}",
        "multiplier": multiplier,
        "removal": share(answered),
        "retention": share(kept) | ({"low": 0.93} if kept == 40 else {}),
        "quality": {"value": quality, "n": 40, "low": quality - 0.05, "high": quality + 0.05},
        "kl": {"value": 0.1, "n": 40, "low": 0.05, "high": 0.2},
        "keeps_floors": keeps,
        **more,
    }


def seen(*stages, chosen=-1, peak=0.6, width=0.15, trials=(), tunes=False, config=None, **record):
    """A run that chose the stage at `chosen`; its figures on the test split are a disaster."""
    test = stage(0, answered=0, kept=0, quality=0.0)
    kernel = {"kind": "gaussian", "peak": peak, "width": width, "threshold": 0.1,
              "multiplier": stages[chosen]["multiplier"], "weights": [0.0, 0.15, 0.9]}  # fmt: skip
    asked = {"target": [40, 40], "baseline": [0, 40], "keep": [40, 40]}
    values = {
        **{name: test[name] for name in ("removal", "retention", "quality", "kl")},
        "saved": True,
        "split": "test",
        "stages": list(stages),
        "kernel": kernel,
        "refused_before": {"search": asked},
        "versions": {},
    } | record
    read = RunRecord.model_validate_json(json.dumps(values))
    settings = {"model": "m"} | (config or {})
    return Seen(RunConfig.model_validate(settings), read, trials, tunes, Path("run"), Path("run-2"))


def first(found):
    finding = found.findings()[0]
    return finding.name, [(s.command, {**s.options}) for s in finding.steps]


OUT = {"out": "run-2"}


@pytest.mark.parametrize(
    ("peak", "width", "step"),
    [
        (0.60, 0.15, {"peak": 0.55, "width": 0.18}),
        (0.75, 0.15, {"peak": 0.55, "width": 0.18}),
        (0.55, 0.16, {"peak": 0.55, "width": 0.18}),
        (0.55, 0.18, {"peak": 0.50, "width": 0.20}),
        (0.50, 0.20, {"tune": "optuna"}),
        (0.50, 0.25, {"tune": "optuna"}),
        (None, None, {"peak": 0.55, "width": 0.18}),
    ],
)
def test_low_removal_moves_the_kernel_earlier_and_widens_it(peak, width, step):
    found = seen(stage(0.5), stage(2.0, 24), peak=peak, width=width)
    assert first(found) == ("low removal", [("edit", step | OUT)])
    assert "removal 0.60 (0.50 to 0.70, n 40) is under the target 0.8" in found.findings()[0].fact


@pytest.mark.parametrize(
    ("peak", "width", "step"),
    [
        (0.60, 0.15, {"peak": 0.65, "width": 0.12, "threshold": 0.2}),
        (0.65, 0.12, {"peak": 0.70, "width": 0.10, "threshold": 0.2}),
        (0.70, 0.10, {"tune": "optuna"}),
    ],
)
def test_lower_quality_moves_it_later_and_narrows_it(peak, width, step):
    stages = stage(0.5, quality=0.5, keeps=False), stage(0.35, quality=0.6, keeps=False)
    found = seen(*stages, peak=peak, width=width)
    assert first(found) == ("quality falls", [("edit", step | OUT)])
    assert "multiplier 0.35: quality 0.60" in found.findings()[0].fact  # of the gentlest


def test_what_stops_a_stronger_edit_is_what_is_mended():
    stops = stage(0.8, 36, quality=0.6, keeps=False)
    found = seen(stage(0.5, 10), stage(0.65), stops, chosen=1)
    assert first(found)[0] == "quality falls"
    assert "removal 0.50" in found.findings()[0].fact
    assert (
        "a stronger edit, multiplier 0.8, loses a floor: quality 0.60" in found.findings()[0].fact
    )
    stops = stage(0.8, 36, 37, keeps=False, topics={"keep": {"fraud": [2, 4], "theft": [3, 3]}})
    finding = seen(stage(0.5, 10), stage(0.65), stops, chosen=1).findings()[0]
    assert finding.name == "retention falls"
    assert "lost: fraud 2 of 4" in finding.fact
    assert finding.evidence["lost"] == {"fraud": [2, 4]}
    assert finding.steps[0].options == {"tune": "optuna"} | OUT


@pytest.mark.parametrize(
    ("config", "step"),
    [
        ({"method": "ablate", "protect": 0.5}, {"protect": 1.0}),
        ({"method": "ablate"}, {"tune": "optuna"}),
        ({"strength": 0.5}, {"strength": 0.35}),
        ({"tune": "grid"}, {"tune": "optuna"}),
        ({"tune": "optuna", "trials": 30}, {"trials": 60}),
        ({"stream": True}, None),
    ],
)
def test_retention_under_its_floor_at_every_stage(config, step):
    stages = stage(0.5, 36, 30, keeps=False), stage(0.35, 36, 32, keeps=False)
    name, steps = first(seen(*stages, config=config))
    assert name == "retention falls"
    assert steps == ([("edit", step | OUT)] if step else [])


def test_a_strength_that_was_fixed_too_low_is_raised():
    for fixed, wanted in ((0.01, 0.5), (0.8, 0.95)):
        found = seen(stage(fixed, 4), config={"strength": fixed})
        assert first(found) == ("low removal", [("edit", {"strength": wanted} | OUT)])


def test_loops_and_thoughts_are_no_matter_of_the_kernel():
    grades = {"target": {"answered": 20, "broken": 16, "refused": 4}}
    assert first(seen(stage(1.0, 20, grades=grades))) == ("loops", [])
    found = seen(stage(1.0, 20, grades=grades, unended=10))
    assert first(found) == (
        "thoughts without an end",
        [("edit", {"thinking_tokens": 8192} | OUT)],
    )


def test_one_topic_left_gets_its_own_layers():
    topics = {"target": {"idioms": [1, 10], "history": [28, 30]}}
    found = seen(stage(1.0, 29, topics=topics))
    finding, then = found.findings()[:2]
    assert finding.name == "one topic left"  # without it the target is reached
    assert "idioms: 1 of 10 answered; the other topics: 93%" in finding.fact
    analyze, edit = finding.steps
    assert analyze.options == {"topic": "idioms", "kernel_out": "run-2.kernel.json"}
    assert edit.options == {"kernel": "run-2.kernel.json", "out": "run-2"}
    assert then.name == "low removal"
    even = {"target": {"idioms": [7, 10], "history": [22, 30]}}
    assert "one topic left" not in {f.name for f in seen(stage(1.0, 29, topics=even)).findings()}


def test_a_topic_that_acts_in_a_terminal_is_in_no_command():
    topics = {"target": {"\x1b[2J`rm -rf`": [0, 10], "history": [30, 30]}}
    finding = seen(stage(1.0, 30, topics=topics)).findings()[0]
    assert "\x1b" not in finding.fact
    assert finding.steps == ()


def test_matrices_out_of_reach_are_named_with_their_layers():
    lost = ["model.layers.1.self_attn.o_proj.weight"]
    found = seen(stage(1.0, 36), lost_in_rounding=lost)
    assert first(found) == ("matrices out of reach", [("edit", {"threshold": 0.2} | OUT)])
    assert "of 1 matrices (layers 1)" in found.findings()[0].fact
    strong = seen(stage(1.0, 36), lost_in_rounding=["model.layers.2.mlp.down_proj.weight", "odd"])
    assert first(strong) == ("matrices out of reach", [])


def test_prompts_that_decide_nothing_are_counted():
    topics = {"fraud": [20, 24], "theft": [0, 6]}
    grades = {"refused": 20, "answered": 8, "broken": 2}
    original = {"search": {"keep": {"grades": grades, "topics": topics}}}
    found = seen(stage(1.0, 36), original=original, config={"limit": 16})
    finding = found.findings()[-1]
    assert finding.name == "prompts that decide nothing"
    assert "not counted are 10 of 30 keep (8 answered, 2 broken)" in finding.fact
    assert "without a counted prompt: theft (keep)" in finding.fact
    assert finding.steps[0].options == {"limit": 32} | OUT
    few = {"search": {"keep": {"grades": {"refused": 29, "broken": 1}, "topics": {}}}}
    assert seen(stage(1.0, 36), original=few, config={"limit": 16}).findings()[-1].steps == ()


def test_a_run_that_lacks_nothing_has_no_finding():
    assert seen(stage(0.5, 10), stage(1.0, 36)).findings() == []


def test_the_test_split_chooses_nothing():
    good, bad = stage(1.0, 36), stage(1.0, 0, 0, 0.0)
    for test in (good, bad):
        figures = {name: test[name] for name in ("removal", "retention", "quality", "kl")}
        assert seen(stage(1.0, 36), **figures).findings() == []
        failed = seen(stage(1.0, 36), saved=False, **figures).findings()
        assert [(f.name, f.steps) for f in failed] == [("not held on the test split", ())]


def test_trials_are_evidence_and_an_unended_search_goes_on():
    trials = [
        Tried(3, {"peak": 0.52, "width": 0.19}, Score(0.7, 1.0, 0.0, 0.01)),
        Tried(4, {"peak": 0.8, "width": 0.1}, Score(0.9, 0.2, 0.0, 0.01)),
    ]
    config = {"tune": "optuna", "trials": 40}
    found = seen(stage(1.0, 20), trials=trials, config=config)
    assert first(found) == ("low removal", [("edit", {"trials": 80} | OUT)])
    assert "the best of 2 trials, number 3 (peak 0.52, width 0.19)" in found.findings()[0].fact
    for tunes, command in ((True, "tune"), (False, "edit")):
        left = Seen(RunConfig(model="m", **config), None, trials, tunes, Path("run"), Path("x"))
        assert first(left) == (
            "the run has not ended",
            [(command, {"resume": True, "out": "run"})],
        )
        assert "2 of 40 trials" in left.findings()[0].fact


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"stages": []}, "stages"),
        ({"stages": [stage(1.0) | {"removal": share(1) | {"value": float("nan")}}]}, "value"),
        ({"stages": [stage(1.0) | {"removal": share(1) | {"n": True}}]}, "n"),
        ({"stages": [stage(1.0) | {"removal": share(1) | {"n": 0}}]}, "n"),
        ({"stages": [stage(1.0, topics={"keep": {"x": [5, 4]}})]}, "more prompts counted"),
        ({"stages": [stage(1.0, grades={"keep": {"refused": -1}})]}, "refused"),
        ({"stages": [stage(1.0, grades={"keep": {"\x1b[2J": 1}})]}, "grades"),
        ({"refused_before": {"search": {"\x1b[2J": [0, 1]}}}, "refused_before"),
        ({"saved": "yes"}, "saved"),
        ({"split": "train"}, "split"),
        ({"refused_before": {"search": {"keep": [3]}}}, "keep"),
        ({"kernel": None}, "kernel"),
        ({"lost_in_rounding": [1]}, "lost_in_rounding"),
    ],
)
def test_a_record_of_wrong_types_is_refused(change, where):
    values = json.loads(seen(stage(1.0)).record.model_dump_json()) | change
    with pytest.raises(ValidationError, match=where):
        RunRecord.model_validate_json(json.dumps(values))

"""The stages: which are tried, when they stop, which wins; each starts from the original."""

from dataclasses import replace
from functools import partial
from math import comb

import numpy as np
import pytest
import torch

from tests import talker
from tests.results import measurement, result
from unrefuse.config import RunConfig
from unrefuse.edits.hooks import hooked
from unrefuse.engine.generate import Reply, last_logits, reply_to
from unrefuse.jobs.edit import _tested
from unrefuse.kernel import gaussian
from unrefuse.metrics.floors import Kept
from unrefuse.metrics.measurement import ask_before, removed
from unrefuse.metrics.quality import kl_and_quality
from unrefuse.metrics.statistics import Estimate
from unrefuse.search.stage import (
    Stage,
    advice,
    at_length,
    best_stage,
    keeps_floors,
    try_plan,
    verdict,
)
from unrefuse.search.stages import gentler_multipliers, multipliers, run_stages

CONFIG = RunConfig(model="x", retention_bound=0.8)  # what 20 keep prompts can show
KERNEL = gaussian(3, 0.5, 0.3)  # 1 in the middle layer
TURNS = ("T3", "T10", "T30", "T45", "T60", "T75", "L10", "B30", "B75", "B82")


@pytest.fixture(scope="module")
def model():
    return talker.loaded(turns=TURNS)


@pytest.fixture
def asked(model):
    """What the model replies to 20 prompts a set; those that are not named it refuses, or answers,
    whatever is edited."""

    def ask(target="", baseline="", keep="", config=CONFIG):
        def filled(words, word):
            return " ".join([*words.split(), *[word] * (20 - len(words.split()))])

        prompts = talker.prompts(
            "search",
            target=filled(target, "K"), baseline=filled(baseline, "B"), keep=filled(keep, "K"),
        )  # fmt: skip
        return ask_before(model, prompts, "search", config)

    return ask


class Fixed:
    """The method of an ablation along a given direction."""

    def __init__(self, model):
        self.plan = partial(talker.removal, model)


@pytest.fixture
def tried(model, asked):
    """Runs the stages on a model of which each prompt tells at what strength it turns."""

    def run(config=CONFIG, **sets):
        before, heard = asked(**sets), []
        unedited = last_logits(model, ["T"])
        found = run_stages(model, Fixed(model), KERNEL, before, config, heard.append)
        assert heard == found
        torch.testing.assert_close(last_logits(model, ["T"]), unedited)
        return found

    return run


def figures(stages, name):
    return [getattr(s.measurement, name).value for s in stages]


def test_multipliers_rise_by_the_step_to_the_maximum():
    assert multipliers(CONFIG) == [0.5, 0.65, 0.8, 0.95, 1.1, 1.25, 1.4, 1.55, 1.7, 1.85, 2.0]
    assert multipliers(RunConfig(model="x", strength=0.7)) == [0.7]


def test_gentler_multipliers_fall_by_the_step_above_zero():
    assert gentler_multipliers(CONFIG) == [0.35, 0.2, 0.05]
    assert gentler_multipliers(RunConfig(model="x", first_multiplier=0.3)) == [0.15]
    assert gentler_multipliers(RunConfig(model="x", strength=0.7)) == []


def test_a_first_stage_under_a_floor_is_followed_by_gentler_ones(tried):
    found = tried(target="T10 " * 6 + "T30 " * 2 + "T45 " * 4, keep="T30 " * 2)
    assert [s.multiplier for s in found] == [0.5, 0.35, 0.2]
    assert figures(found, "removal") == [0.6, 0.4, 0.3]
    assert figures(found, "retention") == [0.9, 0.9, 1]
    assert [s.keeps_floors for s in found] == [False, False, True]
    assert best_stage(found, CONFIG) is found[2]
    none = tried(target="T10 " * 6, keep="T3 " * 2)
    assert [s.multiplier for s in none] == [0.5, 0.35, 0.2, 0.05]
    assert best_stage(none, CONFIG) is None


def test_stages_stop_at_the_removal_target(tried):
    found = tried(target="T10 " * 6 + "T60 " * 6 + "T75 " * 4)
    assert [s.name for s in found] == ["multiplier 0.50", "multiplier 0.65", "multiplier 0.80"]
    assert figures(found, "removal") == [0.3, 0.6, 0.8]
    assert best_stage(found, CONFIG) is found[2]


def test_full_length_goes_on_with_the_answers_under_the_same_hooks(model, asked):
    config = CONFIG.model_copy(update={"reply_tokens": 48})
    before = asked(target="L10 " * 3 + "T10 " * 2)
    plan = talker.removal(model, KERNEL.weights, 0.5)
    short = try_plan(model, "s", KERNEL, 0.5, plan, before, config)
    assert short.measurement.removal.value == 5 / 20
    long = at_length(model, short, config)
    assert long.name == "s, 48 tokens"
    grown = 0
    for a, b in zip(short.measurement.exchanges, long.measurement.exchanges, strict=True):
        if a.prompt.set == "target" and removed(a):
            with hooked(model.network, plan):
                assert b.after == reply_to(model, [a.prompt.text], 48)[0]
            grown += len(b.after.tokens) == 48 > len(a.after.tokens) == 32
        else:
            assert b.after is a.after  # not asked again
    assert grown == 3
    assert long.measurement.removal.value == 2 / 20  # what is answered without an end loops
    for figure in ("retention", "quality", "kl"):
        assert getattr(long.measurement, figure) == getattr(short.measurement, figure)


def test_an_answer_at_full_length_begins_as_it_has_begun(model, asked):
    plan = talker.removal(model, KERNEL.weights, 0.5)
    stage = try_plan(model, "s", KERNEL, 0.5, plan, asked(target="T10"), CONFIG)
    first, *others = stage.measurement.exchanges
    begun = Reply("is a", tuple(model.tokenizer("is a").input_ids), "answered")
    begun = replace(stage.measurement, exchanges=(replace(first, after=begun), *others))
    long = at_length(model, replace(stage, measurement=begun), CONFIG)
    assert first.after.text == "Sure, here is a short answer."
    assert long.measurement.exchanges[0].after.text == "is a short answer."


UNDER = [{"keep": "T75 " * 2}, {"baseline": "B75 " * 6}]


@pytest.mark.parametrize("lost", UNDER, ids=["retention", "quality"])
def test_stages_stop_under_a_floor_and_take_the_best_before_it(tried, lost):
    found = tried(target="T10 " * 6 + "T60 " * 4 + "T75 " * 4, **lost)
    assert figures(found, "removal") == [0.3, 0.5, 0.7]
    assert [s.keeps_floors for s in found] == [True, True, False]
    kept = [r >= CONFIG.retention_floor for r in figures(found, "retention")]
    assert kept == [True, True, "keep" not in lost]
    itself = [q >= CONFIG.quality_floor for q in figures(found, "quality")]
    assert itself == [True, True, "keep" in lost]
    assert best_stage(found, CONFIG) is found[1]


def test_the_gentlest_of_equal_stages_wins(tried):
    config = CONFIG.model_copy(update={"max_multiplier": 0.8})
    found = tried(config, target="T10 " * 6 + "T60 " * 4, baseline="B82 " * 2)
    assert figures(found, "removal") == [0.3, 0.5, 0.5]
    assert all(s.keeps_floors for s in found)
    assert found[1].measurement.kl.value < found[2].measurement.kl.value
    assert best_stage(found, CONFIG) is best_stage(found[::-1], CONFIG) is found[1]


NOT_TAKEN = [
    {"target": "T10 " * 18, "keep": "T10 " * 2},
    {"target": "T10 " * 18, "baseline": "B30 " * 6},
    {"target": ""},
]


@pytest.mark.parametrize("sets", NOT_TAKEN, ids=["retention", "quality", "removal"])
def test_no_stage_is_taken_under_a_floor_or_without_removal(tried, sets):
    (found,) = tried(RunConfig(model="x", strength=0.5, retention_bound=0.8), **sets)
    assert found.measurement.removal.value == (0.9 if sets["target"] else 0)
    assert found.keeps_floors == (not sets["target"])
    assert best_stage([found], CONFIG) is None


def test_a_floor_is_kept_by_its_own_value():
    found = measurement(removal=0.9, quality=0.7)
    stage = Stage("s", KERNEL, 0.5, (), found, keeps_floors(found, CONFIG, chosen=True))
    assert best_stage([stage], CONFIG) is stage
    assert keeps_floors(measurement(retention=0.95, quality=0.7, n=40), CONFIG)


@pytest.mark.parametrize(("low", "wanted"), [(0.6, True), (0.599, False)])
def test_the_interval_of_quality_begins_at_its_bound_or_it_is_not_kept(low, wanted):
    found = replace(measurement(removal=0.9), quality=Estimate(0.75, 20, low, 0.9))
    assert keeps_floors(found, CONFIG) == wanted
    said = "20 baseline prompts do not show that quality is 0.6 or more (its interval begins at 0.5"
    assert [r.startswith(said) and "(--baseline)" in r for r in advice(found, CONFIG)] == (
        [] if wanted else [True]
    )


@pytest.mark.parametrize(
    ("n", "lost", "wanted"),
    [(16, 2, True), (16, 3, False), (21, 3, True), (32, 6, True), (32, 8, False), (105, 28, False)],
)
def test_a_good_edit_keeps_the_floor_of_quality_at_any_number_of_prompts(n, lost, wanted):
    """One whose divergence is 0.05, and that loses some prompts."""
    kl = np.random.default_rng(n).gamma(1, 0.05, n)
    rows = np.column_stack([40 * kl * 0.05 / kl.mean(), np.full(n, 40.0)])
    _, quality = kl_and_quality(rows, [i < lost for i in range(n)])
    assert keeps_floors(replace(measurement(), quality=quality), CONFIG) == wanted


@pytest.mark.parametrize(
    ("n", "lost", "wanted"), [(144, 2, True), (144, 3, False), (60, 0, True), (60, 1, False)]
)
def test_what_is_chosen_keeps_the_retention_floor_with_something_to_spare(n, lost, wanted):
    found = measurement(retention=(n - lost) / n, n=n)
    config = RunConfig(model="x")
    assert keeps_floors(found, config)
    assert keeps_floors(found, config, chosen=True) == wanted
    spare = [r for r in advice(found, config) if "95" in r and "retention" in r]
    assert bool(spare) != wanted
    assert not any("retention" in r for r in verdict(found, config, []))
    # How likely so few would be lost, were the true retention just the floor of 0.95.
    chance = sum(comb(n, i) * 0.05**i * 0.95 ** (n - i) for i in range(lost + 1))
    assert wanted == (chance < 0.05 or lost == 0)


@pytest.mark.parametrize(("n", "wanted"), [(28, False), (29, True)])
def test_so_few_keep_prompts_show_nothing_though_none_is_lost(n, wanted):
    # 0.9 ** 29 is the first power of 0.9 under 0.05.
    found = measurement(retention=1.0, n=n)
    config = RunConfig(model="x")
    assert keeps_floors(found, config) == wanted
    reasons = [r for r in advice(found, config) if "about 29 would" in r]
    assert len(reasons) == (not wanted)
    assert keeps_floors(found, CONFIG)


def test_what_is_lost_of_the_shipped_keep_prompts_is_not_made_up_for_by_ones_own():
    found = measurement(removal=0.9, retention=0.98, n=200)  # 4 are lost
    config = RunConfig(model="x")
    assert keeps_floors(found, config)
    for shipped, wanted in ((4, False), (40, False), (60, False), (120, True)):
        exchanges = [
            replace(e, prompt=replace(e.prompt, source="shipped"))
            if e.prompt.set == "keep" and int(e.prompt.text.split()[1]) >= 200 - shipped
            else e
            for e in found.exchanges
        ]
        mixed = replace(found, exchanges=tuple(exchanges))
        assert mixed.kept_shipped == Kept(kept=shipped - 4, n=shipped)
        assert keeps_floors(mixed, config) == wanted
        assert not keeps_floors(mixed, config, chosen=True)
        told = [r for r in advice(mixed, config) if f"4 of the {shipped} shipped keep prompts" in r]
        assert len(told) == (not wanted)


def test_where_no_number_of_prompts_shows_the_bound_none_is_named():
    config = RunConfig(model="x", retention_floor=0.9, retention_bound=0.9)
    (reason,) = advice(measurement(removal=0.9, retention=0.9), config)
    assert "no number would show it at this rate" in reason


def test_the_test_split_gives_facts_and_no_advice():
    bad = measurement(removal=0.1, retention=0.9, quality=0.6)
    searched = advice(measurement(removal=0.7), CONFIG)
    *facts, told, last = verdict(bad, CONFIG, searched)
    assert [f.split(" is ")[0] for f in facts] == [
        "on the test split, retention 0.900",
        "on the test split, quality 0.600",
        "on the test split, removal 0.10",
    ]
    assert not any("--" in fact for fact in facts)
    assert "the test split chooses nothing" in told
    assert last == f"on the search split, {searched[0]}"
    assert verdict(measurement(removal=0.9), CONFIG, []) == []


def test_a_result_that_fails_on_the_test_split_says_so_and_is_not_saved():
    searched = replace(result(), split="search", reasons=["removal is low: move --peak"])
    found = _tested(searched, measurement(removal=0.9, retention=0.6), None)
    assert (found.saved, found.split) == (False, "test")
    assert found.reasons[0] == "on the test split, retention 0.600 is under its floor 0.950"
    assert found.reasons[-1] == "on the search split, removal is low: move --peak"
    nothing = _tested(searched, measurement(removal=0.0), None)
    assert not nothing.saved
    assert any("the test split chooses nothing" in r for r in nothing.reasons)


def test_advice_names_each_figure_that_was_missed():
    assert advice(measurement(removal=0.9), CONFIG) == []
    retention, quality, removal = advice(
        measurement(removal=0.1, retention=0.5, quality=0.4), CONFIG
    )
    assert "retention 0.500" in retention
    assert "0.95" in retention
    assert "(--pairs)" in retention
    assert "--threshold to 0.2" in quality
    assert "--peak to 0.50-0.55" in removal
    assert "--tune optuna" in removal
    (tuned,) = advice(measurement(removal=0.1), CONFIG.model_copy(update={"tune": "optuna"}))
    assert "more --trials" in tuned


def test_no_advice_names_what_cannot_be_set():
    """The strength of a tuning, which it finds, and a bound under the least there is."""
    tuning = CONFIG.model_copy(update={"tune": "optuna"})
    for lost in (measurement(removal=0.9, retention=0.5), measurement(removal=0.9, retention=0.95)):
        assert "--strength" not in "".join(advice(lost, tuning))
    few = measurement(removal=0.9, retention=1, n=10)
    for bound, told in ((0.9, True), (0.8, False)):
        config = CONFIG.model_copy(update={"retention_bound": bound})
        assert ("lower --retention-bound" in advice(few, config)[0]) == told


def test_replies_that_loop_are_told_from_refusals():
    found = measurement(removal=0.7)
    loops = Reply("on and on", (1, 2), "broken")
    left = [e for e in found.exchanges if e.prompt.set == "target" and e.after.grade == "refused"]
    told = {}
    for many in (0, 1, 2, 6):
        some = left[:many]
        exchanges = tuple(replace(e, after=loops) if e in some else e for e in found.exchanges)
        (told[many],) = advice(replace(found, exchanges=exchanges), CONFIG)
    assert "--peak" in told[0]
    assert "--peak" in told[1]  # one refusal too many, were the loop an answer
    assert "2 of 20 replies no longer refuse but loop" in told[2]
    assert "6 of 20 replies no longer refuse but loop" in told[6]

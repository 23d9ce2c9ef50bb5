"""Is there something to gain: the area under the curve, what could be freed, and the verdict."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import pico
from tests.results import original, prompts
from unrefuse.config import RunConfig
from unrefuse.engine.generate import Reply
from unrefuse.metrics.layers import layer_strengths
from unrefuse.metrics.measurement import Before, Exchange
from unrefuse.models.writers import mixers
from unrefuse.prompts.chat import encode
from unrefuse.prompts.sets import Prompt
from unrefuse.search import discrimination as module
from unrefuse.search.discrimination import (
    Discrimination,
    area_under_curve,
    by_layer,
    discrimination,
)
from unrefuse.search.method import ALARM, HARM, Ablation, Selective

WEIGHTS = (0.0, 0.5, 1.0)
CONFIG = RunConfig(model="x", ridge=0.1)


@pytest.fixture(scope="module")
def model():
    return pico.loaded(batch_size=16)


@pytest.fixture(scope="module")
def method(model):
    return Selective(model, original(model), prompts("train"), CONFIG)


@pytest.mark.parametrize("seed", range(4))
def test_the_area_under_the_curve_is_that_of_the_ranks(seed):
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that many are equal.
    positive = torch.randint(0, 8, (13,), generator=generator).float() + seed / 2
    negative = torch.randint(0, 8, (29,), generator=generator).float()
    both = sorted([*positive.tolist(), *negative.tolist()])
    rank = {v: both.index(v) + (both.count(v) + 1) / 2 for v in both}
    u = sum(rank[v] for v in positive.tolist()) - 13 * 14 / 2
    assert area_under_curve(positive, negative) == pytest.approx(u / (13 * 29))
    assert area_under_curve(negative, positive) == pytest.approx(1 - u / (13 * 29))


def test_the_area_under_the_curve_of_readings_apart():
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0, 4.0])
    assert area_under_curve(high, low) == 1
    assert area_under_curve(low, low) == 0.5


def inputs(model, texts):
    """Per layer, what the attention output reads at the last token of each prompt."""
    found = {}
    for writer in mixers(model.network):
        rows = []
        handle = model.network.get_submodule(writer.name).register_forward_hook(
            lambda m, args, output, rows=rows: rows.append(args[0][0, -1])
        )
        for ids in encode(model.tokenizer, texts):
            model.network(torch.tensor([ids]))
        handle.remove()
        found[writer.layer] = torch.stack(rows)
    return found


def test_freed_are_the_false_refusals_above_95_percent_of_the_true_ones(model, method):
    search = original(model, "search", count=40)
    other = {"target": "keep", "keep": "target"}  # of a few: readings that overlap
    moved = [
        replace(e, prompt=replace(e.prompt, set=other.get(e.prompt.set, "baseline")))
        if e.prompt.line < 4
        else e
        for e in search.exchanges
    ]
    search = Before("search", tuple(moved))
    found = discrimination(method, search, 3, WEIGHTS)
    false, true = ([e.prompt for e in search.usable(name)] for name in ("target", "keep"))
    rows = inputs(model, [p.text for p in (*false, *true)])
    readings = {
        layer: (row.double() @ method.reader(layer, method.config.harmful, 0.1).double()).numpy()
        for layer, row in rows.items()
    }

    def above(reading):
        # The 95th percentile of 40: 0.05 of the way from the 38th to the 39th in order.
        ordered = np.sort(reading[40:])
        return reading[:40] > ordered[37] + 0.05 * (ordered[38] - ordered[37])

    for layer, reading in readings.items():
        assert found.freed[layer] == pytest.approx(above(reading).mean())
    together = above(0.5 * readings[1] + readings[2])
    assert found.together == pytest.approx(together.mean())
    assert found.n == 40
    topics = np.array([p.topic for p in false])
    assert found.topics == {
        t: (pytest.approx(together[topics == t].mean()), 20) for t in ("topic 0", "topic 1")
    }
    assert 0 < found.together < 1
    assert len({*found.freed}) > 1
    assert all(0 <= value <= 1 for value in found.auc)


def test_what_is_refused_no_more_is_left_out_of_what_could_be_freed(model, method):
    search = original(model, "search")
    answered = Reply("Sure", (7, 8), "answered")
    one, *rest = search.exchanges
    fewer = Before("search", (replace(one, before=answered), *rest))
    assert discrimination(method, fewer, 3, WEIGHTS).n == 16


def test_no_prompt_is_read_by_a_probe_that_saw_it_or_its_pair(model):
    """Every prompt lies on an axis of its own, a pair on one that it shares: a probe that saw
    neither reads exactly 0, one that saw the other half of the pair reads the opposite."""
    asked = [Prompt(f"{set} {i}", set, lang="en", split="train", pair=pair)
             for sets, count in ((("target", "keep", "baseline"), 6), (("harmless", "harmful"), 10))
             for i in range(count)
             for set in sets
             for pair in [f"pair {i}" if count == 10 else ""]]  # fmt: skip
    grades = {"target": "refused", "baseline": "answered"}
    exchanges = tuple(
        Exchange(p, Reply("Ok", (7, 8), grades[p.set])) for p in asked if p.set in grades
    )
    method = Selective(model, Before("train", exchanges), asked, CONFIG)
    groups = [place.prompt.pair or place.prompt.text for place in method.places]
    axes = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    rows = torch.zeros(len(groups), 32)
    rows[range(len(groups)), [axes[group] for group in groups]] = 1.0
    method.inputs = replace(method.inputs, rows={1: rows})
    assert len(axes) == 28 <= 32
    assert module._cross_validated(method, 1) == 0.5

    # The same rows read by probes that saw what they must not: the prompt itself, or its pair.
    reading = rows @ method.reader(1, -0.8, 0.1)
    kinds = method.classes
    assert area_under_curve(reading[kinds == ALARM], reading[kinds == HARM]) > 0.6
    told = []
    for name in ("harmless", "harmful"):
        own = torch.tensor([place.prompt.set == name for place in method.places])
        told.append((rows @ method.fit(1, ~own, -0.8, 0.1))[own])
    assert area_under_curve(*told) == 0


def test_a_layer_without_a_probe_tells_nothing(model, method):
    found = discrimination(method, original(model, "search"), 5, (0.0, 0.5, 1.0, 0.0, 0.0))
    assert found.auc[3:] == (0.5, 0.5)
    assert found.freed[3:] == (0.0, 0.0)


@pytest.mark.parametrize(
    ("together", "says", "percent"),
    [
        (0.5, "Worth editing: by what", "50%"),
        (0.49, "Some gain: 49%", "49%"),
        (0.2, "Some gain: 20%", "20%"),
        (0.19, "Little to gain: only 19%", "19%"),
    ],
)
def test_the_verdict_says_what_to_expect(together, says, percent):
    found = Discrimination((0.9,), (together,), together, 40, {"homonym": (0.25, 8)})
    assert found.verdict().startswith(says)
    assert f"{percent} of 40 false refusals" in found.verdict()
    assert ("--pairs FILE" in found.verdict()) == (together < 0.5)
    record = found.to_json()
    assert record["topics"] == {"homonym": {"freed": 0.25, "n": 8}}
    assert record["verdict"] == found.verdict()


def test_what_is_measured_beside_an_edit_is_that_of_analyze(model, method):
    search = original(model, "search")
    found = by_layer(method, search)
    targets, baselines = (search.usable(name) for name in ("target", "baseline"))
    whole = layer_strengths(
        model,
        torch.nn.functional.normalize(method.differences, dim=-1),
        [e.prompt.text for e in targets],
        [""] * len(targets),
        [e.before for e in targets],
        [e.prompt.text for e in baselines],
    )
    assert found["separation"] == pytest.approx(whole[""].separation, abs=1e-4)
    assert len(found["auc"]) == 3
    assert all(0 <= auc <= 1 for auc in found["auc"])


def test_beside_an_ablation_no_probe_is_measured_and_beside_a_plan_nothing(model):
    ablation = Ablation(model, original(model), CONFIG.model_copy(update={"method": "ablate"}))
    found = by_layer(ablation, original(model, "search"))
    assert [(name, len(values)) for name, values in found.items()] == [("separation", 3)]
    assert by_layer(None, original(model, "search")) == {}

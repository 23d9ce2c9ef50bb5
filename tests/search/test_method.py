"""The two methods: what they capture of the train split, and the plans that they make of it."""

from dataclasses import replace

import pytest
import torch

from tests import pico
from tests.results import ANSWERED, REFUSED, original, prompts
from unrefuse.config import RunConfig
from unrefuse.edits.directions import find_directions
from unrefuse.edits.plan import ablation_plan, selective_plan
from unrefuse.edits.readers import fit_reader
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.measurement import Before, Exchange
from unrefuse.prompts.chat import encode
from unrefuse.prompts.sets import select
from unrefuse.search import method as method_module
from unrefuse.search.method import (
    ALARM,
    ANSWER,
    EVERYDAY,
    HARM,
    Ablation,
    Selective,
    training_tokens,
)

WEIGHTS = (0.0, 0.5, 1.0)
CONFIG = RunConfig(model="x", harmful=-0.6, ridge=0.1, protect=0.7)


@pytest.fixture(scope="module")
def model():
    return pico.loaded(batch_size=16)


@pytest.fixture(scope="module")
def before(model):
    return original(model)


@pytest.fixture(scope="module")
def method(model, before):
    return Selective(model, before, prompts("train"), CONFIG)


def same(first, second):
    assert [edit.module for edit in first] == [edit.module for edit in second]
    for a, b in zip(first, second, strict=True):
        assert a.of_output == b.of_output
        torch.testing.assert_close(a.write, b.write)
        torch.testing.assert_close(a.read, b.read)


def test_what_is_captured_are_the_last_prompt_tokens_and_some_of_the_answers(model, monkeypatch):
    monkeypatch.setattr(method_module, "ANSWER_ROWS", 12)  # of two answers
    asked = [*prompts("train", 3), *prompts("search", 3)]
    long = Reply("x" * 20, tuple(range(30, 60)), "answered", thoughts=10)
    replies = {
        "target": (REFUSED, ANSWERED, Reply("", (), "broken")),
        "baseline": (long, ANSWERED, REFUSED),
    }
    exchanges = tuple(
        Exchange(p, reply)
        for name, given in replies.items()
        for p, reply in zip(select(asked, name, "train"), given, strict=True)
    )
    tokens, places = training_tokens(model, Before("train", exchanges), asked)
    assert {place.prompt.split for place in places} == {"train"}
    kinds = {"target": ALARM, "harmless": ALARM, "keep": HARM, "harmful": HARM}
    found = iter(places)
    groups = {}
    for sequence in tokens:
        own = [next(found) for _ in sequence.places]
        prompt = own[0].prompt
        ids = encode(model.tokenizer, [prompt.text])[0]
        assert {place.prompt for place in own} == {prompt}
        assert own[0].kind == kinds.get(prompt.set, EVERYDAY)
        assert {place.kind for place in own[1:]} <= {ANSWER}
        assert sequence.places[0] == len(ids) - 1
        reply = next((e.before for e in exchanges if e.prompt == prompt), None)
        usable = prompt.set == "baseline" and reply.grade == "answered"
        assert sequence.ids == ids + (list(reply.tokens) if usable else [])
        read = [sequence.ids[place] for place in sequence.places[1:]]
        if reply is long:
            assert read == list(range(40, 60, 3))  # spread over all of the answer, and no thought
        else:
            assert read == (list(reply.tokens) if usable else [])
        groups.setdefault(sequence.group, []).append(prompt.set)
    assert next(found, None) is None
    assert len(tokens) == 5 * 3
    assert groups["refused"] == ["target", "baseline"]
    assert groups["answered"] == ["target", "baseline", "baseline"]
    assert len(groups[""]) == 10  # broken, and all of keep and the pairs


def test_a_reader_weighs_sources_alike_whatever_their_rows_and_answers_most(method):
    goal = {ALARM: 1.0, HARM: -0.6, EVERYDAY: 0.0, ANSWER: 0.0}
    kinds = [place.kind for place in method.places]
    counts = {kind: kinds.count(kind) for kind in goal}
    assert counts[ANSWER] > counts[ALARM] == counts[HARM] == 34 > counts[EVERYDAY] == 17

    share = {"target": 0.5, "harmless": 0.5, "keep": 1, "harmful": 1, "baseline": 1}
    sources = ["answer" if p.kind == ANSWER else p.prompt.set for p in method.places]

    def by_hand(rows):
        goals = torch.tensor([goal[kinds[i]] for i in rows])
        own = [sources[i] for i in rows]
        weights = torch.tensor([len(own) * share.get(s, 2) / own.count(s) for s in own])
        return fit_reader(method.inputs.rows[1][rows], goals, weights, 0.1)

    near = {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(method.reader(1, -0.6, 0.1), by_hand(range(len(kinds))), **near)
    some = torch.tensor([i % 3 > 0 for i in range(len(kinds))])
    wanted = by_hand([i for i in range(len(kinds)) if i % 3])
    torch.testing.assert_close(method.fit(1, some, -0.6, 0.1), wanted, **near)


def test_a_reader_is_fitted_once_per_layer_and_numbers(method):
    first = method.reader(1, -0.6, 0.1)
    assert method.reader(1, -0.6, 0.1) is first
    for key in ((2, -0.6, 0.1), (1, -0.7, 0.1), (1, -0.6, 0.2)):
        assert not torch.equal(method.reader(*key), first)


def test_a_selective_plan_takes_the_numbers_it_is_given(model, method):
    def expected(harmful, ridge):
        readers = {layer: method.reader(layer, harmful, ridge) for layer in (1, 2)}
        sizes = method.inputs.sizes
        return selective_plan(
            model.network, method.differences, readers, sizes, WEIGHTS, 0.8
        )  # fmt: skip

    same(method.plan(WEIGHTS, 0.8), expected(-0.6, 0.1))
    same(method.plan(WEIGHTS, 0.8, harmful=-1.2), expected(-1.2, 0.1))
    same(method.plan(WEIGHTS, 0.8, harmful=-1.2, ridge=0.3), expected(-1.2, 0.3))
    with pytest.raises(UnrefuseError, match="3 layers, and the edit is for 2"):
        method.plan(WEIGHTS[:2], 0.8)


def test_what_is_written_is_the_mean_difference_of_refused_and_answered(model, before, method):
    states = Ablation(model, before, CONFIG).means
    torch.testing.assert_close(
        method.differences, states["target"] - states["baseline"], rtol=1e-4, atol=1e-6
    )


def test_an_ablation_is_that_of_its_directions(model, before):
    method = Ablation(model, before, CONFIG)
    means = [method.means[name] for name in ("target", "baseline", "keep")]
    for numbers, protect in (({}, 0.7), ({"protect": 0.0}, 0.0), ({"protect": 1.0}, 1.0)):
        directions = find_directions(*means, protect)
        torch.testing.assert_close(method.directions(numbers.get("protect")), directions)
        same(
            method.plan(WEIGHTS, 0.8, **numbers),
            ablation_plan(model.network, directions, WEIGHTS, 0.8),
        )
    assert not torch.allclose(method.directions(0.0), method.directions(1.0))


@pytest.mark.parametrize("grade", ["refused", "answered"])
def test_without_a_harmless_prompt_that_is_refused_or_answered_there_is_nothing(
    model, before, grade
):
    exchanges = [
        replace(e, before=replace(e.before, grade=grade)) if e.prompt.set != "keep" else e
        for e in before.exchanges
    ]
    with pytest.raises(UnrefuseError, match="a refused and an answered"):
        Selective(model, Before("train", tuple(exchanges)), prompts("train"), CONFIG)

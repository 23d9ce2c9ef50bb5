"""Tuning by gradient: the shared prefix is exact, and what is learned does what it is for."""

import pytest
import torch

from tests import pico
from unrefuse.config import RunConfig
from unrefuse.edit.hooks import hooked
from unrefuse.evaluate.generate import Reply, reply_to
from unrefuse.evaluate.margin import make_openings, margins
from unrefuse.kernel import gaussian
from unrefuse.models.writers import blocks
from unrefuse.prompts.sets import Prompt
from unrefuse.search import gradient
from unrefuse.search.gradient import learn
from unrefuse.search.objective import Before, Exchange
from unrefuse.search.score import Judge

WORDS = {"target": "kill a process {}", "baseline": "boil {} eggs", "keep": "hurt neighbour {}"}
CONFIG = RunConfig(model="x", kernel_steps=4, steps=12)


def original(model, tokens=6) -> Before:
    """A split on which the model did as expected: its own replies, graded by their set."""
    prompts = [
        Prompt(text.format(i), name, "", "en", "train")
        for name, text in WORDS.items()
        for i in range(17)
    ]
    replies = reply_to(model, [p.text for p in prompts], tokens)
    grades = {"target": "refused", "baseline": "answered", "keep": "refused"}
    exchanges = (
        Exchange(p, Reply(r.text, r.tokens or (5,), grades[p.set]))
        for p, r in zip(prompts, replies, strict=True)
    )
    return Before("train", tuple(exchanges))


@pytest.fixture(scope="module")
def learned():
    model = pico.loaded()
    before = original(model)
    directions = torch.nn.functional.normalize(torch.randn(3, 32).double(), dim=-1)
    kernel = gaussian(3, 0.5, 0.3)
    candidates = list(learn(model, directions, kernel, before, CONFIG))
    again = list(learn(model, directions, kernel, before, CONFIG))
    return model, before, candidates, again


def test_target_margins_fall_and_keep_margins_are_held(learned):
    model, before, candidates, _ = learned

    def means(plan):
        with hooked(model.network, plan):
            return {
                name: float(margins(model, make_openings(model, *asked)).mean())
                for name in ("target", "keep")
                if (
                    asked := (
                        [e.prompt.text for e in before.usable(name)],
                        [e.before.tokens for e in before.usable(name)],
                    )
                )
            }

    first, last = means(()), means(candidates[-1].plan)
    assert last["target"] < first["target"]
    assert last["keep"] - last["target"] > first["keep"] - first["target"]


@pytest.mark.parametrize(
    ("kept", "removed", "start"),
    [
        ([1.0] * 4, [0.1, 0.3, 0.6, 0.79], 1.5),
        ([1.0, 0.97, 0.96], [0.1, 0.3, 0.6], 0.9),
        ([0.9], [0.1], 0.3),
        ([1.0, 1.0], [0.1, 0.3, 0.8], 0.9),
        ([], [0.8], 0.3),
    ],
)
def test_it_starts_where_enough_is_removed_and_from_no_kernel_that_loses_refusals(
    monkeypatch, kept, removed, start
):
    def margins(judge, name, limit):
        shares = {"keep": kept, "target": [1 - share for share in removed]}[name]
        refused = round(100 * shares[0])
        (kept if name == "keep" else removed).pop(0)
        return torch.tensor([1.0] * refused + [-1.0] * (100 - refused))

    monkeypatch.setattr(Judge, "all_margins", margins)
    monkeypatch.setattr(gradient, "CORE_RATE", 0.0)
    model = pico.loaded()
    directions = torch.nn.functional.normalize(torch.randn(3, 32).double(), dim=-1)
    kernel = gaussian(3, 0.5, 0.3)
    config = RunConfig(model="x", steps=1)
    candidate = list(learn(model, directions, kernel, original(model), config))[-1]
    edited = candidate.kernel.layer_weights
    expected = [start * w if i else 0 for i, w in enumerate(kernel.weights)]
    assert edited == pytest.approx(expected, abs=1e-5)
    assert kept == removed == []  # each was asked for, and no more


def test_candidates_come_halfway_and_at_the_end_with_the_strength_of_each_layer(learned):
    model, _, candidates, _ = learned
    assert [(c.phase, c.step) for c in candidates] == [
        *[("kernel", 4), ("cores", 6), ("cores", 9), ("cores", 12)]
    ]
    for candidate in candidates:
        weights = candidate.kernel.layer_weights
        assert candidate.kernel.kind == "tuned"
        assert weights[0] == 0  # the shallow quarter is left alone
        norms = [0.0] * len(blocks(model.network))
        for edit in candidate.plan:
            layer = int(edit.module.split(".")[2])
            norms[layer] = max(norms[layer], float(torch.linalg.svdvals(edit.core)[0]))
        assert weights == pytest.approx(norms)


def test_the_same_seed_learns_the_same(learned):
    _, _, first, second = learned
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x.core, y.core) for x, y in zip(a.plan, b.plan, strict=True))

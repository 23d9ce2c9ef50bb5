"""Scores by forward passes: known refusals, their margins, and what an empty plan leaves."""

import pytest
import torch

from tests import pico
from tests.edits.plans import one_direction
from tests.results import original, prompts
from unrefuse.config import RunConfig
from unrefuse.edits.hooks import hooked
from unrefuse.engine.generate import Reply
from unrefuse.metrics.margin import make_openings, margins
from unrefuse.metrics.measurement import Exchange
from unrefuse.metrics.quality import divergences, make_reference
from unrefuse.prompts.sets import Prompt
from unrefuse.search.finalists import merit
from unrefuse.search.score import Scorer, opening_of, usual_openings

PAIRS = prompts("search", 5, ("harmless", "harmful"))


@pytest.fixture(scope="module")
def model():
    return pico.loaded(batch_size=64)


@pytest.fixture(scope="module")
def before(model):
    return original(model, "search", tokens=16)


@pytest.fixture(scope="module")
def usual(before):
    return usual_openings([*before.usable("target"), *before.usable("keep")])


def test_an_empty_plan_changes_nothing(model, before):
    score = Scorer(model, before).score(())
    assert (score.removal, score.retention, score.refused, score.pairs) == (0, 1, 0, 0)
    assert score.kl == pytest.approx(0, abs=1e-5)
    assert merit(score, RunConfig(model="x")) == pytest.approx(0, abs=1e-5)
    assert score.to_json() == vars(score)


def test_the_usual_opening_is_the_most_frequent_of_the_language():
    def refusal(lang, *tokens):
        return Exchange(Prompt("Hi", "keep", lang=lang), Reply("No.", tokens, "refused"))

    known = [
        *[refusal("en", 1, 2, 3, 4, 5), refusal("en", 6), refusal("en", 1, 2, 3, 4, 7)],
        *[refusal("zh", 8, 9), refusal("zh", 6), refusal("zh", 6), refusal("zh", 6)],
        *[refusal("ja", 9), refusal("ja", 8, 9)],
    ]
    usual = usual_openings(known)
    found = {lang: usual(Prompt("Hi", "keep", lang=lang)) for lang in ("en", "zh", "ja", "fr")}
    # Four tokens count; of equals the first; all languages together for one that has none.
    assert found == {"en": (1, 2, 3, 4), "zh": (6,), "ja": (9,), "fr": (6,)}


def test_a_margin_is_the_highest_over_the_known_refusals(model, before, usual):
    plan = one_direction(model.network)
    found = Scorer(model, before, PAIRS).margins(plan)
    by_hand = {
        "target": [(e.prompt, opening_of(e)) for e in before.usable("target")],
        "keep": [(e.prompt, opening_of(e)) for e in before.usable("keep")],
        "answered": [(e.prompt, None) for e in before.usable("baseline")],
        "harmless": [(p, None) for p in PAIRS[:5]],
        "harmful": [(p, None) for p in PAIRS[5:]],
    }
    assert found.keys() == by_hand.keys()
    ways = 0
    for name, asked in by_hand.items():
        wanted = []
        for prompt, own in asked:
            known = {opening for opening in (own, usual(prompt)) if opening}
            ways = max(ways, len(known))
            forced = make_openings(model, [prompt.text] * len(known), list(known))
            with hooked(model.network, plan):
                wanted.append(margins(model, forced).max())
        torch.testing.assert_close(found[name], torch.stack(wanted), rtol=1e-3, atol=1e-4)
    assert ways == 2  # a prompt whose own opening is another than the usual one


def test_the_figures_are_shares_of_the_margins_and_the_divergence_per_token(model, before):
    plan = one_direction(model.network, (1.0, 1.0, 1.0), 2.5)
    scorer = Scorer(model, before, PAIRS)
    score = scorer.score(plan)
    opens = {name: [m > 0 for m in row.tolist()] for name, row in scorer.margins(plan).items()}
    assert score.removal == pytest.approx(1 - sum(opens["target"]) / 17)
    assert score.retention == pytest.approx(sum(opens["keep"]) / 17)
    assert score.refused == pytest.approx(sum(opens["answered"]) / 17)
    assert 0 < score.retention < 1
    right = [b and not a for a, b in zip(opens["harmless"], opens["harmful"], strict=True)]
    assert score.pairs == pytest.approx(sum(right) / 5)
    answered = before.usable("baseline")
    reference = make_reference(
        model, [e.prompt.text for e in answered], [e.before for e in answered], 12
    )
    with hooked(model.network, plan):
        kl, tokens = divergences(model, reference).sum(axis=0)
    assert score.kl == pytest.approx(kl / tokens, rel=1e-3)
    assert score.kl > 1e-4


def test_a_pair_is_right_where_the_harmful_prompt_alone_opens_with_a_refusal(
    model, before, monkeypatch
):
    scorer = Scorer(model, before, PAIRS[:4] + PAIRS[5:9])
    rows = {"target": [1.0], "keep": [1.0], "answered": [-1.0],
            "harmless": [-1.0, -1.0, 1.0, 1.0], "harmful": [1.0, -1.0, 1.0, -1.0]}  # fmt: skip
    monkeypatch.setattr(
        Scorer, "margins", lambda self, plan: {n: torch.tensor(row) for n, row in rows.items()}
    )
    assert scorer.score(()).pairs == 0.25


def test_a_limit_takes_the_first_of_each_set_and_twice_of_the_answered(model, before):
    found = Scorer(model, before, limit=4).margins()
    assert {name: len(row) for name, row in found.items()} == {
        "target": 4, "keep": 4, "answered": 8,
    }  # fmt: skip

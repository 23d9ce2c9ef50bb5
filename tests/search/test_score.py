"""Scores by forward passes: known refusals, their margins, and what an empty plan leaves."""

from dataclasses import replace

import pytest
import torch

from tests import pico, talker
from tests.edits.plans import one_direction
from tests.results import original, prompts
from unrefuse.config import RunConfig
from unrefuse.edits.hooks import hooked
from unrefuse.engine.generate import Reply, reply_to
from unrefuse.metrics.margin import Openings, make_openings, margins
from unrefuse.metrics.measurement import Before, Exchange
from unrefuse.metrics.quality import divergences, make_reference
from unrefuse.models.load import load_model
from unrefuse.prompts.sets import Prompt
from unrefuse.search import score as score_module
from unrefuse.search.finalists import merit
from unrefuse.search.score import Scorer, common_openings, opening_of

PAIRS = prompts("search", 5, ("harmless", "harmful"))


@pytest.fixture(scope="module")
def model():
    return pico.loaded(batch_size=64)


@pytest.fixture(scope="module")
def before(model):
    return original(model, "search", tokens=16)


@pytest.fixture(scope="module")
def common(before):
    return common_openings([*before.usable("target"), *before.usable("keep")])


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
    common = common_openings(known)
    found = {lang: common(Prompt("Hi", "keep", lang=lang)) for lang in ("en", "zh", "ja", "fr")}
    # Four tokens count; of equals the first; all languages together for one that has none.
    assert found == {"en": (1, 2, 3, 4), "zh": (6,), "ja": (9,), "fr": (6,)}


def test_a_margin_is_the_highest_over_the_known_refusals(model, before, common):
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
            known = {opening for opening in (own, common(prompt)) if opening}
            ways = max(ways, len(known))
            forced = make_openings(model, [prompt.text] * len(known), list(known))
            with hooked(model.network, plan):
                wanted.append(margins(model, forced).max())
        torch.testing.assert_close(found[name], torch.stack(wanted), rtol=1e-3, atol=1e-4)
    assert ways == 2  # a prompt whose own opening is another than the common one


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


def test_a_model_that_thinks_is_read_after_its_thoughts(model, before):
    """The same tokens, of which the first three are thoughts: other margins, and by hand."""
    plan = one_direction(model.network)
    exchanges = [
        replace(e, before=replace(e.before, thoughts=3))
        for e in before.exchanges
        if len(e.before.tokens) > 5
    ]
    thinking = replace(before, exchanges=tuple(exchanges))
    usable = [*thinking.usable("target"), *thinking.usable("keep")]
    assert len(usable) > 20
    common = common_openings(usable)
    found = Scorer(model, thinking).margins(plan)
    wanted = []
    for e, ids in zip(usable, model.encode([e.prompt.text for e in usable]), strict=True):
        openings = {e.before.tokens[3:7], common(e.prompt)}
        read = [[*ids, *e.before.tokens[:3], *opening[:-1]] for opening in openings]
        with hooked(model.network, plan):
            wanted.append(margins(model, Openings(read, [list(o) for o in openings])).max())
    own = torch.cat([found["target"], found["keep"]])
    torch.testing.assert_close(own, torch.stack(wanted), rtol=1e-3, atol=1e-4)
    raw = [replace(e, before=replace(e.before, thoughts=0)) for e in exchanges]
    raw = Scorer(model, replace(before, exchanges=tuple(raw))).margins(plan)
    assert not torch.allclose(own, torch.cat([raw["target"], raw["keep"]]), atol=0.01)


WORDS = {"target": "q1 {} T", "baseline": "q1 {} B", "keep": "q1 {} K",
         "harmless": "q2 {} B", "harmful": "q2 {} K"}  # fmt: skip


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = talker.build(tmp_path_factory.mktemp("thinker"), thoughts=8)
    return load_model(RunConfig(model=str(folder), batch_size=8))


@pytest.fixture(scope="module")
def thought(thinker):
    """What it replies to three prompts of each set, and three matched pairs, of which it has two
    right."""
    asked = {
        name: [Prompt(form.format(f"q{i}"), name, pair=str(i)) for i in range(3)]
        for name, form in WORDS.items()
    }
    asked["harmless"][0] = replace(asked["harmless"][0], text="q2 q0 T")
    sets = [p for name in ("target", "baseline", "keep") for p in asked[name]]
    replies = reply_to(thinker, [p.text for p in sets], 16)
    exchanges = tuple(Exchange(p, r) for p, r in zip(sets, replies, strict=True))
    return Before("search", exchanges), [*asked["harmless"], *asked["harmful"]]


def test_no_thought_is_taken_for_a_refusal(thinker, thought):
    before, pairs = thought
    scorer = Scorer(thinker, before, pairs)
    read = {thinker.tokenizer.decode(opening) for opening in scorer.openings.openings}
    assert read == {"I'm sorry, but I"}
    first = thinker.tokenizer.decode(scorer.openings.sequences[0])
    words = " ".join(f"r{i}" for i in range(8))
    assert first == f"q1 q0 T <think> {words} </think> I'm sorry, but"
    score = scorer.score(())
    assert (score.removal, score.retention, score.refused) == (0, 1, 0)
    assert score.pairs == pytest.approx(2 / 3)  # by what it thinks of each prompt itself


def test_what_is_thought_of_pairs_is_asked_once(thinker, thought, tmp_path, monkeypatch):
    before, pairs = thought
    first = Scorer(thinker, before, pairs, folder=tmp_path).score(())
    monkeypatch.delattr(score_module, "reply_to")
    assert Scorer(thinker, before, pairs, folder=tmp_path).score(()) == first


def test_a_pair_whose_thoughts_do_not_end_is_left_out(thinker, thought):
    before, pairs = thought
    short = replace(thinker, thinking_tokens=4)
    score = Scorer(short, before, pairs).score(())
    assert (score.removal, score.retention, score.pairs) == (0, 1, 0)

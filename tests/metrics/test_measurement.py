"""What the original is asked, split by split, and what an edit is asked again."""

from dataclasses import replace

import pytest

from tests import talker
from unrefuse.config import RunConfig
from unrefuse.edits.hooks import hooked
from unrefuse.engine.generate import reply_to
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.measurement import TooFew, ask_before, check_shipped, measure
from unrefuse.metrics.record import remembered
from unrefuse.prompts.sets import Prompt, load_prompts

CONTEXTS = ["system prompt", "after a turn that was answered", "after a turn that was refused"]
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + talker.TEMPLATE
)
# What comes after anything else is answered.
IN_CONTEXT = talker.TEMPLATE + "{% if messages[1:] %} B{% endif %}"
TURNS = ("T10", "B30", "L")


def prompts(split, **sets):
    """30 of each set, in words that the model takes as expected where no others are given."""
    usual = {"target": "T ", "baseline": "B ", "keep": "K ", "harmless": "B ", "harmful": "K "}
    return talker.prompts(split, **{name: word * 30 for name, word in usual.items()} | sets)


PROMPTS = [p for split in ("train", "search", "test") for p in prompts(split)]


@pytest.fixture(scope="module")
def model():
    return talker.loaded(turns=TURNS)


def config(**settings):
    return RunConfig(model="x", **{"reply_tokens": 36} | settings)


def sets(before):
    return {e.prompt.set for e in before.exchanges}


@pytest.mark.parametrize(
    ("split", "method", "asked"),
    [
        ("train", "selective", {"target", "baseline"}),
        ("train", "ablate", {"target", "baseline", "keep"}),
        ("search", "selective", {"target", "baseline", "keep"}),
        ("test", "selective", {"target", "baseline", "keep", "harmless", "harmful"}),
        ("test", "ablate", {"target", "baseline", "keep", "harmless", "harmful"}),
    ],
)
def test_a_split_is_asked_what_it_is_for(model, split, method, asked):
    before = ask_before(model, PROMPTS, split, config(method=method, reply_tokens=8))
    assert sets(before) == asked
    assert len(before.exchanges) == 30 * len(asked)
    assert {e.prompt.split for e in before.exchanges} == {before.split} == {split}
    assert (before.reference is None) == (split == "train")
    assert [c.name for c in before.contexts] == (CONTEXTS if split == "test" else [])


@pytest.mark.parametrize(("setting", "final", "search"), [(36, 36, 32), (12, 12, 12)])
def test_reply_tokens_rule_the_final_test_and_up_to_32_of_them_the_search(
    model, setting, final, search
):
    settings = config(reply_tokens=setting)
    longest = {}
    for split in ("search", "test"):
        before = ask_before(model, prompts(split, baseline="L B " * 15), split, settings)
        longest[split] = max(len(e.before.tokens) for e in before.exchanges)
    assert longest == {"search": search, "test": final}
    for everything, tokens in ((False, search), (True, final)):
        found = measure(model, before, settings, everything)
        assert max(len(e.after.tokens) for e in found.exchanges) == tokens
    in_contexts = [e for c in before.contexts for e in c.exchanges]
    assert max(len(e.before.tokens) for e in in_contexts) == final


def test_a_context_comes_before_some_prompts_of_each_set():
    model = talker.loaded(template=IN_CONTEXT, turns=TURNS)
    before = ask_before(model, PROMPTS, "test", config(reply_tokens=8))
    plain = {e.prompt: e.before.tokens for e in before.exchanges}
    first = {name: before.usable(name)[0] for name in ("baseline", "keep")}
    system, answered, refused = before.contexts
    assert [m["role"] for m in system.messages] == ["system"]
    for context, exchange in ((answered, first["baseline"]), (refused, first["keep"])):
        assert [(m["role"], m["content"]) for m in context.messages] == [
            ("user", exchange.prompt.text), ("assistant", exchange.before.text),
        ]  # fmt: skip
    for context in before.contexts:
        asked = [e.prompt for e in context.exchanges]
        # Spread over the set, and none of those that are a first turn.
        for at, name in enumerate(("target", "baseline", "keep")):
            rest = [e.prompt for e in before.usable(name)][1:]
            assert asked[10 * at : 10 * (at + 1)] == [rest[i * 29 // 10] for i in range(10)]
        assert len(asked) == 30  # a third of what is left of each set
        replies = reply_to(model, [p.text for p in asked], 8, before=context.messages)
        assert [e.before for e in context.exchanges] == replies
        assert {e.before.grade for e in context.exchanges} == {"answered"}
        assert any(e.before.tokens != plain[e.prompt] for e in context.exchanges)


def test_a_context_that_the_chat_template_rejects_is_left_out_and_told(capsys):
    model = talker.loaded(template=NO_SYSTEM, turns=TURNS)
    before = ask_before(model, PROMPTS, "test", config(reply_tokens=8))
    assert [c.name for c in before.contexts] == CONTEXTS[1:]
    assert capsys.readouterr().err.splitlines() == [
        "the chat template does not support this context, so it is left out: system prompt"
    ]


def test_an_edit_is_asked_everything_in_the_end_and_what_counts_before(model):
    mixed = prompts("test", target="T10 " * 12 + "K " * 18, baseline="B " * 27 + "B30 " * 3)
    before = ask_before(model, mixed, "test", config(reply_tokens=8))
    plan = talker.removal(model, (0.0, 1.0, 0.0), 0.5)
    with hooked(model.network, plan):
        last = measure(model, before, config(reply_tokens=8), True)
        quick = measure(model, before, config(reply_tokens=8), False)
        for context in last.contexts:
            texts = [e.prompt.text for e in context.exchanges]
            replies = reply_to(model, texts, 8, before=context.messages)
            assert [e.after for e in context.exchanges] == replies
    assert [c.name for c in last.contexts] == CONTEXTS
    assert quick.contexts == ()
    assert [e.prompt for e in last.exchanges] == [e.prompt for e in before.exchanges]
    assert any(e.after.tokens != e.before.tokens for e in last.exchanges)
    for found in (last, quick):
        assert (found.removal.value, found.retention.value) == (0.4, 1)
        assert (found.removal.n, found.retention.n) == (30, 30)
        assert 0 < found.quality.value < 0.9  # 3 of 30 are lost


def test_only_prompts_that_the_original_took_as_expected_are_asked_again(model):
    settings = config(reply_tokens=8, retention_bound=0.8)
    asked = prompts("test", keep="K " * 7 + "B " + "K " * 22)
    before = ask_before(model, asked, "test", settings)
    quick = measure(model, before, settings, False)
    left_out = {e.prompt for e in before.exchanges} - {e.prompt for e in quick.exchanges}
    assert [p.text for p in left_out] == ["q7 test keep B"]
    assert quick.retention.n == 29
    assert len(measure(model, before, settings, True).exchanges) == len(before.exchanges)


def test_an_edit_of_few_keep_prompts_stops_before_it_begins(model):
    few = prompts("test", keep="K " * 20)
    with pytest.raises(
        UnrefuseError, match=r"too few keep prompts: .* refused 20 .* 29 are needed .* 0\.9"
    ):
        ask_before(model, few, "test", config(reply_tokens=8))


@pytest.mark.parametrize(("method", "fails"), [("selective", False), ("ablate", True)])
def test_the_train_split_needs_keep_prompts_for_an_ablation_alone(model, method, fails):
    few = [p for p in PROMPTS if p.set != "keep" or p.line < 15]
    if fails:
        with pytest.raises(UnrefuseError, match=r"too few keep prompts: .* 15 of 15 in the train"):
            ask_before(model, few, "train", config(method=method, reply_tokens=8))
    else:
        assert ask_before(model, few, "train", config(method=method, reply_tokens=8)).exchanges


def test_thoughts_that_have_not_ended_are_no_lack_of_prompts():
    """A refusal that its prompt has begun goes on without a thought; all other replies of this
    model are thoughts without an end."""
    thinks = replace(talker.loaded(thoughts=12), thinking_tokens=8)
    asked = prompts("search", target="I'm " * 30)
    with pytest.raises(UnrefuseError, match=r"30 of 30 replies to baseline .*--thinking-tokens 32"):
        ask_before(thinks, asked, "search", config())
    few = prompts("search", target="I'm " * 30, baseline="B " * 15)
    with pytest.raises(TooFew, match=r"answered 0 of 15 in the search split"):
        ask_before(thinks, few, "search", config())


@pytest.mark.parametrize("split", ["search", "test"])
def test_a_choice_of_languages_leaves_enough_of_the_shipped_keep_prompts(split):
    shipped = load_prompts(RunConfig(model="x", languages=("ja",), limit=16))
    check_shipped(shipped)
    own = [Prompt(f"q{i}", "keep", split=split, source="mine.txt") for i in range(100)]
    left = [p for p in shipped if (p.set, p.split) == ("keep", split)][:15]
    few = [p for p in shipped if (p.set, p.split) != ("keep", split)] + left + own
    with pytest.raises(
        UnrefuseError, match=rf"15 of the shipped ones in the {split} split .*--lang"
    ):
        check_shipped(few)


def test_replies_that_a_run_has_kept_are_read(model, tmp_path):
    settings = config(reply_tokens=8)
    first = ask_before(model, PROMPTS, "search", settings, tmp_path)
    asked = [e.prompt for e in first.exchanges]
    kept = remembered(tmp_path, "before-search", asked, lambda: pytest.fail("asked again"))
    assert [r.tokens for r in kept] == [e.before.tokens for e in first.exchanges]

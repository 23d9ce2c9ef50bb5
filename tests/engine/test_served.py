"""Replies of a served model, from a real server on a local socket whose answers the tests give."""

import json
from pathlib import Path

import pytest

from tests.server import completion, quick, scripted, serving
from unrefuse.config import THINKING_TOKENS, RunConfig
from unrefuse.detector.refusal import is_broken
from unrefuse.engine import served
from unrefuse.engine.served import endpoint_of, served_replies, thinking_of, words
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.thinking import after_thinking

PROMPTS = [f"Question {i}?" for i in range(12)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    quick(monkeypatch, tmp_path / "cache")


def settings(url, tokens=20, **more):
    return RunConfig(model=f"openai:{url}#m", out=Path("out"), reply_tokens=tokens, **more)


def ask(url, prompts=PROMPTS, thinking=None, **more):
    config = settings(url, **more)
    return served_replies(endpoint_of(config.model, config), config, prompts, thinking, "after")


def speaker(voice):
    """A model whose replies begin with its name and are cut at the limit, one word a token."""

    def answer(body):
        said = f"{voice} says of {body['messages'][-1]['content']} " + "word " * 40
        tokens = said.split()
        limit = body["max_tokens"]
        return completion(" ".join(tokens[:limit]), ended=limit >= len(tokens))

    return answer


def test_replies_are_greedy_graded_and_counted():
    answers = {"Question 0?": "I'm sorry, but I can't help with that.", "Question 1?": ""}

    def answer(body):
        return completion(answers.get(body["messages"][-1]["content"], "Paris, in France."))

    with serving(answer) as (url, seen):
        replies, tokens = ask(url, batch_size=2)
    assert [r.grade for r in replies] == ["refused", "broken"] + ["answered"] * 10
    assert tokens == {"read": 7 * 12, "wrote": 3 * 12}
    assert {(b["temperature"], b["max_tokens"]) for _, b in seen} == {(0, 20)}
    assert {len(b["messages"]) for _, b in seen} == {1}
    with serving(scripted(completion("Paris.", usage=None))) as (url, _):
        assert ask(url)[1] == {"read": None, "wrote": None}


def test_a_run_goes_on_where_the_same_model_is_served(capsys):
    with serving(speaker("Ada")) as (url, seen):
        whole, _ = ask(url)
        seen.clear()
        again, _ = ask(url, [*PROMPTS, "One more?"])
        assert again[:12] == whole
        lengths = [body["max_tokens"] for _, body in seen]
        assert sorted(lengths) == [served.OPENING] * served.SAMPLE + [20]
        assert "after: 12 of 13 replies are kept" in capsys.readouterr().err
        served.forget_replies(settings(url))
        seen.clear()
        ask(url)
        assert [body["max_tokens"] for _, body in seen] == [20] * 12
        # Replies shorter than the openings that are asked again are compared whole.
        ask(url, tokens=8)
        ask(url, tokens=8)
        assert "after: 12 of 12 replies are kept" in capsys.readouterr().err
        # Another folder is another run.
        seen.clear()
        config = settings(url).model_copy(update={"out": Path("other")})
        served_replies(endpoint_of(config.model, config), config, PROMPTS, None, "after")
        assert len(seen) == 12


def test_another_model_under_the_same_name_is_asked_everything(capsys):
    voice = ["Ada"]
    with serving(lambda body: speaker(voice[0])(body)) as (url, _):
        ask(url, PROMPTS[:6])
        voice[0] = "Eve"
        replies, _ = ask(url)
    assert all(r.text.startswith("Eve") for r in replies)
    assert "answers otherwise than before" in capsys.readouterr().err


def unmarked(body):
    """A model whose template opens its thoughts, so that only their end shows, past the limit."""
    thought = "so let me think " * 10
    short = body["max_tokens"] < 100
    return completion(thought if short else f"{thought}</think>Paris.", ended=not short)


@pytest.mark.parametrize(
    ("answer", "thinking"),
    [
        (scripted(completion("Four.")), None),
        (scripted(completion("Four, or" * 40, ended=False)), None),
        (scripted(completion("", ended=False, reasoning_content="Hm")), ""),
        (scripted(completion("<think>Hm</think>Four.")), ""),
        (unmarked, "<think>"),
        (lambda b: completion("x", False) if b["max_tokens"] < 99 else (400, {}, {}), None),
    ],
)
def test_a_model_that_thinks_is_found_out(answer, thinking):
    with serving(answer) as (url, _):
        config = settings(url)
        assert thinking_of(endpoint_of(config.model, config), config.reply_tokens, 99) == thinking


def test_thoughts_have_room_and_are_no_reply(capsys):
    def answer(body):
        if "Question 3" in body["messages"][-1]["content"]:
            return completion("", ended=False, reasoning_content="I'm sorry, and on and on")
        return completion("Paris.", reasoning_content="I'm sorry, </think> no?")

    with serving(answer) as (url, seen):
        replies, _ = ask(url, thinking="")
    assert {body["max_tokens"] for _, body in seen} == {20 + THINKING_TOKENS}
    assert [r.grade for r in replies] == ["answered"] * 3 + ["broken"] + ["answered"] * 8
    assert {after_thinking(r.text).strip() for r in replies} == {"Paris.", ""}
    assert "1 of 12 thoughts did not end in 2068 tokens" in capsys.readouterr().err


def test_thoughts_that_the_template_opens_are_marked(capsys):
    answers = scripted(completion("Hm.</think>Paris."), completion("Hm, I'm sorry", ended=False))
    with serving(answers) as (url, _):
        replies, _ = ask(url, PROMPTS[:2], thinking="<think>", batch_size=1)
    assert [r.grade for r in replies] == ["answered", "broken"]
    assert replies[0].text == "<think>Hm.</think>Paris."
    assert "1 of 2 thoughts did not end" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("openai:http://h/v1", {}, "is not a served model"),
        ("openai:#m", {}, "is not a served model"),
        ("openai:h/v1#m", {}, "http://"),
        ("openai:http://h/v1#m", {"dtype": "float32"}, "the server decides on dtype"),
        ("openai:http://h/v1#m", {"backend": "vllm"}, "the server decides on backend"),
    ],
)
def test_names_and_settings_that_are_wrong(name, more, says):
    with pytest.raises(UnrefuseError, match=says):
        endpoint_of(name, RunConfig(model=name, **more))


def test_other_names_are_no_endpoints():
    assert endpoint_of(None, RunConfig(model="x")) is None
    assert endpoint_of("org/model", RunConfig(model="x")) is None


def test_words_stand_in_for_tokens():
    assert words("no no, No\n日本 no") == (0, 0, 1, 2, 3, 4, 0)
    assert words(" \n") == ()
    loop = "The cat sat on the mat. " * 9
    assert is_broken(loop, words(loop))
    assert is_broken("はい、そうです。" * 9, words("はい、そうです。" * 9))
    plain = "The quick brown fox jumps over the lazy dog, while nine other animals look on, amused."
    assert not is_broken(plain, words(plain))


def test_words_find_the_loops_that_the_models_own_tokens_do():
    folder = Path(__file__).parents[1] / "data" / "replies"
    rows = [
        json.loads(row)
        for file in sorted(folder.glob("*.jsonl"))
        for row in file.read_text(encoding="utf-8").splitlines()
    ]
    rows = [row for row in rows if row.get("tokens") and row["reply"].strip()]
    by_tokens = [is_broken(row["reply"], row["tokens"]) for row in rows]
    by_words = [is_broken(row["reply"], words(row["reply"])) for row in rows]
    same = sum(a == b for a, b in zip(by_tokens, by_words, strict=True))
    assert len(rows) > 1500
    assert same >= 0.98 * len(rows)
    assert sum(by_words) == pytest.approx(sum(by_tokens), rel=0.1)

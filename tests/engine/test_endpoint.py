"""The client of a served model, against a real server on a local socket."""

import json
import threading

import pytest

from tests.server import completion, quick, scripted, serving
from unrefuse.engine.endpoint import (
    RETRIES,
    Answer,
    Endpoint,
    ask_all,
    ask_once,
    forget,
    kept,
    parse_endpoint,
)
from unrefuse.errors import UnrefuseError

KEY = "UNREFUSE_SERVER_KEY"
SECRET = "sk-very-secret-0123"
CHAT = [{"role": "user", "content": "Who?"}]
CHATS = [[{"role": "user", "content": text}] for text in ("Who?", "What?", "Why?")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    quick(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"


def echo(body):
    return completion(body["messages"][-1]["content"].upper())


def texts(answers):
    return [answer and answer.text for answer in answers]


def test_answers_come_in_order_and_are_asked_for_once():
    with serving(echo) as (url, seen):
        endpoint = Endpoint(url, "m", KEY)
        assert texts(ask_all(endpoint, [*CHATS, CHAT], 9, "x")) == ["WHO?", "WHAT?", "WHY?", "WHO?"]
        assert len(seen) == 3
        assert {(b["model"], b["temperature"], b["max_tokens"]) for _, b in seen} == {("m", 0, 9)}
        assert texts(ask_all(endpoint, CHATS, 9, "x")) == ["WHO?", "WHAT?", "WHY?"]
        assert kept(endpoint, CHATS[:1], 9) == [Answer("WHO?", "", True, 7, 3)]
        assert len(seen) == 3
        # Another limit, model, or run is another question.
        ask_all(endpoint, CHATS[:1], 10, "x")
        ask_all(Endpoint(url, "another", KEY), CHATS[:1], 9, "x")
        ask_all(endpoint, CHATS[:1], 9, "x", run="mine")
        ask_once(endpoint, CHAT, 9)
        assert len(seen) == 7
        forget("mine")
        assert kept(endpoint, CHATS[:1], 9, "mine") == [None]
        assert kept(endpoint, CHATS[:1], 9) != [None]


def test_many_are_asked_at_once():
    together = threading.Barrier(3, timeout=10)

    def answer(body):
        together.wait()
        return echo(body)

    with serving(answer) as (url, _):
        assert len(ask_all(Endpoint(url, "m", KEY), CHATS, 9, "x", workers=3)) == 3


def test_a_run_that_is_stopped_goes_on_from_there(capsys):
    def broken(body):
        return (503, {}, {}) if "Why?" in json.dumps(body) else echo(body)

    with serving(broken) as (url, seen):
        endpoint = Endpoint(url, "m", KEY)
        with pytest.raises(UnrefuseError, match="status 503"):
            ask_all(endpoint, CHATS, 9, "x", workers=1, run="r")
        assert len(seen) == 2 + RETRIES + 1
        assert "2 of 3 answers are kept, and are not asked for again" in capsys.readouterr().err
        seen.clear()
        with pytest.raises(UnrefuseError):
            ask_all(endpoint, CHATS, 9, "x", run="r")
        assert {body["messages"][0]["content"] for _, body in seen} == {"Why?"}


def test_what_is_not_wanted_is_not_kept_and_what_is_refused_is_passed_over():
    def answer(body):
        filtered = (400, {}, {"error": {"message": "content filter"}})
        return filtered if "Why?" in json.dumps(body) else echo(body)

    with serving(answer) as (url, _):
        endpoint = Endpoint(url, "m", KEY)
        found = ask_all(endpoint, CHATS, 9, "x", wanted=lambda a: a.text == "WHO?", passing=True)
        assert texts(found) == ["WHO?", "WHAT?", None]
        assert texts(kept(endpoint, CHATS, 9)) == ["WHO?", None, None]
        with pytest.raises(UnrefuseError, match="status 400, 'content filter'"):
            ask_all(endpoint, CHATS, 9, "x")


def test_the_key_goes_into_the_header_and_nowhere_else(monkeypatch, capsys, cache):
    monkeypatch.setenv(KEY, SECRET + "\n")  # as `cat` gives it
    with serving(echo) as (url, seen):
        ask_all(Endpoint(url, "m", KEY), CHATS, 9, "x")
        assert {headers["Authorization"] for headers, _ in seen} == {f"Bearer {SECRET}"}
        assert SECRET not in json.dumps([body for _, body in seen])
    for status in (401, 404):
        said = {"error": {"message": f"bad key {SECRET}"}}
        with serving(scripted((status, {}, said))) as (url, seen):
            with pytest.raises(UnrefuseError, match=f"status {status}") as told:
                ask_all(Endpoint(url, "m", KEY), CHATS[:1], 9, "x")
            assert len(seen) == 1  # it is not tried again
            assert SECRET not in str(told.value)
            assert (KEY in str(told.value)) == (status == 401)
    written = capsys.readouterr()
    assert SECRET not in written.out + written.err
    files = [file for file in cache.rglob("*") if file.is_file()]
    assert files
    assert all(SECRET.encode() not in file.read_bytes() for file in files)


def test_nothing_of_other_services_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", SECRET)
    monkeypatch.setenv("OPENAI_PROJECT_ID", SECRET)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: {SECRET}\napi-key: {SECRET}")
    with serving(echo) as (url, seen):
        ask_once(Endpoint(url, "m", KEY), CHAT, 9)
    headers, _ = seen[0]
    assert "Authorization" not in headers
    assert SECRET not in str(headers)


def test_a_key_that_is_none_is_told_and_not_shown(monkeypatch):
    monkeypatch.setenv(KEY, "sk-\u00e9\n2")
    with pytest.raises(UnrefuseError, match=f"{KEY} holds characters") as told:
        ask_once(Endpoint("http://127.0.0.1:9/v1", "m", KEY), CHAT, 9)
    assert "sk-" not in str(told.value)


def test_another_hosts_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with serving(echo) as (other, taken):
        away = (307, {"Location": f"{other}/chat/completions"}, {})
        with serving(scripted(away)) as (url, _), pytest.raises(UnrefuseError, match="status 307"):
            ask_once(Endpoint(url, "m", KEY), CHAT, 9)
        assert taken == []


def test_trouble_that_passes_is_waited_out():
    trouble = [(500, {}, {}), (429, {"Retry-After": "0.01"}, {}), completion("fine")]
    with serving(scripted(*trouble)) as (url, seen):
        assert ask_once(Endpoint(url, "m", KEY), CHAT, 9).text == "fine"
        assert len(seen) == 3


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, {}, {"choices": []}), "a chat completion"),
        ((200, {}, {"choices": "x"}), "a chat completion"),
        ((200, {}, {}), "a chat completion"),
        ((200, {}, {"choices": [{"message": {"content": {"a": 1}}}]}), "a chat completion"),
        ((200, {"Content-Type": "application/json"}, "<html>"), "a chat completion"),
        ((200, {}, "<html>a page</html>"), "a chat completion.*mostly in /v1"),
        ((403, {}, {}), f"status 403; the key comes from {KEY}"),
        ((404, {}, {"error": {"message": "no model m"}}), "'no model m'; .* a model 'm'"),
        ((422, {}, {"detail": "a\x1bb"}), r"status 422, 'a\\x1bb'"),
        ((503, {}, "<html>busy</html>"), "status 503"),
    ],
)
def test_trouble_that_lasts_is_one_line(answer, says):
    with serving(scripted(answer)) as (url, _), pytest.raises(UnrefuseError, match=says) as told:
        ask_once(Endpoint(url, "m", KEY), CHAT, 9)
    assert "\n" not in str(told.value)
    assert url in str(told.value)


def test_a_server_that_is_not_there_and_a_url_that_is_another():
    says = r"status 404, 'Not Found'; .*mostly in /v1"
    with serving(echo) as (url, _), pytest.raises(UnrefuseError, match=says):
        ask_once(Endpoint(url.removesuffix("/v1"), "m", KEY), CHAT, 9)
    with pytest.raises(UnrefuseError, match=r"cannot be reached: .*refused"):
        ask_once(Endpoint(url, "m", KEY), CHAT, 9)


def test_a_model_that_wants_the_new_name_of_the_limit():
    def answer(body):
        if "max_tokens" in body:
            return 400, {}, {"error": {"message": "Use 'max_completion_tokens' instead."}}
        return completion(f"{body['max_completion_tokens']}, {'temperature' in body}")

    with serving(answer) as (url, _):
        assert ask_once(Endpoint(url, "m", KEY), CHAT, 9).text == "9, False"


@pytest.mark.parametrize(
    ("served", "answer"),
    [
        (completion("a"), Answer("a", "", True, 7, 3)),
        (completion("a", ended=False, usage=None), Answer("a", "", False, None, None)),
        (completion("a", reasoning_content="t"), Answer("a", "t", True, 7, 3)),
        (completion(None, reasoning="t"), Answer("", "t", True, 7, 3)),
        (completion(None, refusal="no"), Answer("no", "", True, 7, 3)),
        (completion("a", usage=("x", None)), Answer("a", "", True, None, None)),
    ],
)
def test_what_is_read_of_an_answer(served, answer):
    with serving(scripted(served)) as (url, _):
        assert ask_once(Endpoint(url, "m", KEY), CHAT, 9) == answer


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/v1", "http"),
        ("localhost:8000", "http"),
        ("http:///v1", "http"),
        ("http://host:port/v1", "not valid"),
        ("http://[host/v1", "not valid"),
        ("http://user:pass@host/v1", KEY),
        ("ftp://user:pass@host/v1", "http"),
        ("http://user:pass", "not valid"),
        ("https://host/v1?key=abc", KEY),
        ("https://host/v1#abc", KEY),
    ],
)
def test_urls_that_are_none_or_hold_a_key(url, says):
    with pytest.raises(UnrefuseError, match=says) as told:
        parse_endpoint(f"openai:{url}#m", KEY)
    assert "pass" not in str(told.value)
    assert "abc" not in str(told.value)


def test_names():
    found = parse_endpoint("openai:http://h:1/v1/#org/model", KEY)
    assert found == Endpoint("http://h:1/v1", "org/model", KEY)
    assert found.name == "openai:http://h:1/v1#org/model"
    for other in ("demo", "hf:x", "openai:", "openai:http://h/v1", "openai:http://h/v1#"):
        assert parse_endpoint(other, KEY) is None


def test_a_cache_that_cannot_be_used_is_one_line(cache):
    cache.mkdir()
    (cache / "unrefuse").write_text("a file")
    with pytest.raises(UnrefuseError, match="cannot use the cache in"):
        kept(Endpoint("http://h/v1", "m", KEY), CHATS, 9)

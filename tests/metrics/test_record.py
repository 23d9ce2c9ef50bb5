"""The folder of a tuning run: never overwritten, never mixed, whole whenever the process dies."""

import json

import pytest

from unrefuse.config import RunConfig
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.record import (
    append_trial,
    check_run,
    open_run,
    read_trials,
    remembered,
)
from unrefuse.prompts.sets import Prompt

CONFIG = RunConfig(model="x", tune="optuna")


def test_a_run_is_gone_on_with_only_when_asked(tmp_path):
    run = tmp_path / "run"
    check_run(run, resume=False)
    with pytest.raises(UnrefuseError, match="no run in"):
        check_run(run, resume=True)
    open_run(run, CONFIG)
    with pytest.raises(UnrefuseError, match="--resume"):
        check_run(run, resume=False)
    check_run(run, resume=True)
    open_run(run, CONFIG.model_copy(update={"resume": True, "device": "cuda:1"}))


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path):
    open_run(tmp_path, CONFIG)
    with pytest.raises(UnrefuseError, match=r"seed was 0 and is 1 now"):
        open_run(tmp_path, CONFIG.model_copy(update={"seed": 1}))


def test_a_part_of_a_setting_is_named_by_itself(tmp_path):
    open_run(tmp_path, CONFIG)
    kernel = CONFIG.kernel.model_copy(update={"peak": 0.5})
    with pytest.raises(UnrefuseError, match=r"\(kernel\.peak was null and is 0\.5 now\)"):
        open_run(tmp_path, CONFIG.model_copy(update={"kernel": kernel}))


def test_a_run_of_an_older_version_had_the_defaults_of_settings_that_it_does_not_name(tmp_path):
    open_run(tmp_path, CONFIG)
    file = tmp_path / "settings.json"
    settings = json.loads(file.read_text())
    del settings["retention_bound"]
    file.write_text(json.dumps(settings))
    open_run(tmp_path, CONFIG)
    with pytest.raises(UnrefuseError, match=r"retention_bound was 0.9 and is 0.8 now"):
        open_run(tmp_path, CONFIG.model_copy(update={"retention_bound": 0.8}))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UnrefuseError, match="not a run of unrefuse"):
        check_run(tmp_path, resume=False)
    file = tmp_path / "thesis.tex"
    with pytest.raises(UnrefuseError, match="not a run of unrefuse"):
        check_run(file, resume=False)


def test_trials_are_read_back_and_half_a_line_is_left_out(tmp_path):
    assert read_trials(tmp_path) == []
    rows = [{"trial": i, "parameters": {"peak": 0.5, "名": "值"}} for i in range(3)]
    for row in rows:
        append_trial(tmp_path, row)
    assert read_trials(tmp_path) == rows
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"trial": 3, "para')
    assert read_trials(tmp_path) == rows


def test_replies_are_asked_for_once(tmp_path):
    prompts = [Prompt("Hi\nthere\u2028!", "target"), Prompt("你好", "keep")]
    replies = [Reply("I'm sorry, but no.", (1, 2), "refused"), Reply("Hello", (3,), "answered")]
    asked = []

    def ask():
        asked.append(1)
        return replies

    assert remembered(tmp_path, "before-train", prompts, ask) == replies
    assert remembered(tmp_path, "before-train", prompts, ask) == replies
    assert len(asked) == 1
    # Other prompts: these replies are not theirs.
    remembered(tmp_path, "before-train", prompts[::-1], ask)
    remembered(None, "before-train", prompts, ask)
    assert len(asked) == 3
    rows = (tmp_path / "before-train.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(rows[0])["grade"] == "refused"


@pytest.mark.parametrize("line", [b"{", b"[1]", b"7", b"\xff", b"null", b"[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    append_trial(tmp_path, {"number": 0})
    with (tmp_path / "trials.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UnrefuseError, match=r"trials\.jsonl:2 is damaged"):
        read_trials(tmp_path)
    (tmp_path / "before-test.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UnrefuseError, match=r"before-test\.jsonl:1 is damaged"):
        remembered(tmp_path, "before-test", [Prompt("a", "target")], list)


@pytest.mark.parametrize("row", [{}, {"text": 7, "tokens": [1]}, {"text": "a", "tokens": None}])
def test_a_damaged_reply_is_named_with_what_to_do(tmp_path, row):
    (tmp_path / "before-test.jsonl").write_text(json.dumps({"prompt": "a"} | row) + "\n")
    with pytest.raises(UnrefuseError, match=r"before-test\.jsonl is damaged: remove it"):
        remembered(tmp_path, "before-test", [Prompt("a", "target")], list)


def test_damaged_settings_are_named(tmp_path):
    for text in ("[]", "{", "7", "[" * 100_000):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(UnrefuseError, match=r"cannot read .*settings\.json"):
            open_run(tmp_path, CONFIG)

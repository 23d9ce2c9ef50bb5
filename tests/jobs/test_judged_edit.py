"""`unrefuse edit --judge`: the final figures by a judge, on a model built by hand."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests import results, talker
from tests.jobs.test_evaluate import unrefuse
from tests.server import by_content, completion, quick, serving
from unrefuse.engine.endpoint import Endpoint
from unrefuse.jobs.edit import _tested
from unrefuse.metrics.chat_judge import KEY
from unrefuse.metrics.measurement import measurement_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    quick(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    model = talker.build(folder / "talker")
    files = talker.write_prompts(folder)
    prompts = [word for name, file in files.items() for word in (f"--{name}", file)]
    return [model, *prompts, "--limit", 40]


def test_the_final_figures_are_the_judges(monkeypatch, capsys, talking, tmp_path):
    """It calls some replies to target prompts no answers, in which the detector sees them."""

    def answer(body):
        data = json.loads(body["messages"][-1]["content"].splitlines()[0])
        if set(data["reply"].split()) & set(talker.REFUSAL):
            return completion("refused")
        number = data["prompt"].split()[0].removeprefix("q")
        odd = data["prompt"].endswith("T") and int(number) % 8 == 0
        return completion("partly" if odd else "answered")

    with serving(answer) as (url, seen):
        code, printed, told = unrefuse(
            monkeypatch, capsys, "edit", *talking, "--judge", f"openai:{url}#m",
            "--out", tmp_path / "x",
        )  # fmt: skip
    assert code == 0, told
    record = json.loads((tmp_path / "x" / "run.json").read_text(encoding="utf-8"))
    assert record["judge"] == f"openai:{url}#m"
    assert record["by_detector"]["removal"]["value"] == 1
    assert 0 < record["removal"]["value"] < 1
    assert set(record["agreement"]["differences"]) == {"answered -> partly"}
    assert record["unjudged"] is None
    assert record["stages"][0]["removal"]["value"] == 1  # the search keeps the detector
    assert record["seconds"]["judge"] > 0
    asked, agreed = record["agreement"]["n"], record["agreement"]["agreed"]
    assert len(seen) <= asked + 1  # what is said twice is asked once
    card = (tmp_path / "x" / "README.md").read_text(encoding="utf-8")
    for text in (printed, card):
        said = " ".join(text.split())
        assert f"agrees with the built-in detector on {agreed} of {asked} replies" in said
        assert "by the built-in detector: removal 1.00, retention 1.00" in said


def test_a_judge_that_dies_half_way_loses_nothing(monkeypatch, capsys, talking, tmp_path):
    graded, dies_after = [], 31  # the first is the question that checks it

    def answer(body):
        if len(graded) == dies_after:
            return 500, {}, {}
        graded.append(body["messages"][-1]["content"])
        return by_content(body)

    with serving(answer) as (url, _):
        judge = ("--judge", f"openai:{url}#m")
        out = tmp_path / "x"
        code, printed, told = unrefuse(
            monkeypatch, capsys, "edit", *talking, *judge, "--out", out, "--json"
        )
        dies_after = None
        again, report, _ = unrefuse(
            monkeypatch, capsys, "evaluate", out, "--against", talking[0], *talking[1:], *judge,
            "--out", tmp_path / "again", "--json",
        )  # fmt: skip
    assert code == 2
    last = told.splitlines()[-1]
    assert "status 500" in last
    assert "detector alone; to grade the rest, run `unrefuse evaluate" in last
    assert re.search(r"\b(2\d|30) of \d+", told)  # some may still be under way
    assert again == 0
    assert json.loads(report)["judge"] == judge[1]
    asked = [said for said in graded if "two and two" not in said]
    assert len(asked) == len(set(asked)) > 60  # what it had graded is not asked for again
    record = json.loads(printed)
    assert record["saved"] is True
    assert record["judge"] == "builtin"
    assert "status 500" in record["unjudged"]
    assert record["retention"]["value"] == 1
    assert (tmp_path / "x" / "model.safetensors").exists()
    card = (tmp_path / "x" / "README.md").read_text(encoding="utf-8")
    assert "not graded by the judge that was asked for" in card


@pytest.mark.parametrize("command", ["edit", "tune"])
def test_a_judge_that_is_not_there_is_told_before_a_model_is_loaded(
    monkeypatch, capsys, tmp_path, command
):
    code, printed, told = unrefuse(
        monkeypatch, capsys, command, tmp_path / "no model", "--out", tmp_path / "x",
        "--judge", "openai:http://127.0.0.1:9/v1#m",
    )  # fmt: skip
    assert (code, printed) == (2, "")
    assert "127.0.0.1:9/v1 cannot be reached" in told.splitlines()[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("retention", "saved"), [(1.0, True), (0.5, False)])
def test_a_judge_is_no_way_around_the_floor(retention, saved):
    """It sees a refusal in every reply to a keep prompt; the detector sees half of them lost."""

    def answer(body):
        if "keep" in body["messages"][-1]["content"]:
            return completion("refused")
        return by_content(body)

    found = results.result()
    exchanges = results.measurement(retention=retention, n=60).exchanges
    rows = {e.prompt.text: np.array([0.001, 5.0]) for e in exchanges if e.prompt.set == "baseline"}
    config = found.config.model_copy(update={"removal_target": 0.3, "quality_floor": 0.0})
    with serving(answer) as (url, _):
        done = _tested(
            replace(found, config=config),
            measurement_of(exchanges, (), rows, 0),
            Endpoint(url, "m", KEY),
        )
    assert done.measurement.retention.value == 1
    assert done.detected.retention.value == retention
    assert done.saved is saved
    lost = "detector's grades: on the test split, retention 0.5"
    assert any(lost in reason for reason in done.reasons) != saved

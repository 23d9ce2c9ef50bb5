"""What a run says: the JSON object and the tables, with hostile prompts and replies."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.results import ANSWERED, measurement, result
from unrefuse.report.results import (
    example_text,
    examples,
    result_table,
    stage_line,
    weakest_topic,
    write_json,
)
from unrefuse.report.terminal import layer_bars, number, plain


def printed(renderable):
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_record_has_the_promised_keys(tmp_path):
    made = result(tmp_path / "out", removal=0.8)
    write_json(made, tmp_path / "run.json")
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    again = json.loads(json.dumps(made.to_json()))
    # The peak is that of the process when asked, and may have risen since.
    assert 10 < record["peak_rss_mib"] <= again["peak_rss_mib"]
    assert record == again | {"peak_rss_mib": record["peak_rss_mib"]}
    for figure in ("removal", "retention", "quality", "kl"):
        assert set(record[figure]) == {"value", "n", "low", "high"}
    assert record["refused"] == {
        "target": {"before": [20, 20], "after": [4, 20]},
        "baseline": {"before": [0, 20], "after": [0, 20]},
        "keep": {"before": [20, 20], "after": [20, 20]},
    }
    nothing = {"before": [0, 20], "after": [0, 20]}
    assert record["broken"] == dict.fromkeys(("target", "baseline", "keep"), nothing)
    kernel = record["kernel"]
    assert set(kernel) >= {"kind", "peak", "width", "threshold", "multiplier", "weights"}
    assert [s["multiplier"] for s in record["stages"]] == [0.5, 0.65]
    assert record["seconds"] == {"load": 1.23}
    assert record["saved"] is True
    assert record["out"] == str(tmp_path / "out")
    assert record["config"]["model"] == "demo"
    topics = record["by_topic"]["removal"]
    assert {t: e["n"] for t, e in topics.items()} == {"topic 0": 10, "topic 1": 10}
    assert sum(e["value"] * e["n"] for e in topics.values()) == pytest.approx(16)


def test_the_record_tells_pairs_contexts_and_the_weakest_kind(tmp_path):
    record = json.loads(json.dumps(result(tmp_path / "out").to_json()))
    counts = {
        when: {name: round(e["value"] * e["n"]) for name, e in found.items()}
        for when, found in record["pairs"].items()
    }
    nothing = dict.fromkeys(("right", "over_refuses", "over_complies", "wrong", "broken"), 0)
    assert counts == {
        "before": nothing | {"over_refuses": 3},
        "after": nothing | {"right": 1, "over_refuses": 1, "over_complies": 1},
    }
    assert {e["n"] for found in record["pairs"].values() for e in found.values()} == {3}
    assert record["contexts"] == {
        "system prompt": {
            "target": {"before": [10, 10], "after": [0, 10]},
            "baseline": {"before": [0, 10], "after": [0, 10]},
            "keep": {"before": [10, 10], "after": [0, 10]},
        }
    }
    assert record["weakest"]["topic"] == "topic 0"  # of equals the first
    assert set(record["refused"]) == {"target", "baseline", "keep"}


def test_the_weakest_kind_is_the_one_kept_least_and_of_equals_the_larger():
    made = measurement(retention=0.6).exchanges
    keep = [e for e in made if e.prompt.set == "keep"]
    lost = [replace(e, after=ANSWERED) for e in keep if e.prompt.topic == "topic 1"]
    kept = [e for e in keep if e.prompt.topic == "topic 0"]
    found = weakest_topic(kept + lost)
    assert (found["topic"], found["value"], found["n"]) == ("topic 1", 0, 10)
    other = [
        replace(e, prompt=replace(e.prompt, topic="topic 2", text=f"{e.prompt.text} {i}"))
        for e in lost
        for i in range(2)
    ]
    assert weakest_topic(kept + lost + other)["topic"] == "topic 2"
    assert weakest_topic([e for e in made if e.prompt.set == "target"]) is None


def test_a_run_without_pairs_and_contexts_says_nothing_of_them():
    made = replace(result(), measurement=measurement())
    record = made.to_json()
    assert (record["pairs"], record["contexts"]) == ({}, {})
    text = printed(result_table(made))
    assert "matched pairs" not in text
    assert "contexts" not in text


def test_the_tables_say_the_figures():
    text = printed(result_table(result()))
    rows = [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in
            text.splitlines()]  # fmt: skip
    assert "weakest kind of harm: topic 0, 10 of 10 still refused" in rows
    assert "matched pairs before after" in rows
    assert "refused 20 → 10 of 20 0 → 0 of 20 20 → 20 of 20" in rows
    assert "answered 0 → 10 of 20 20 → 20 of 20 0 → 0 of 20" in rows
    assert "broken 0 → 0 of 20 0 → 0 of 20 0 → 0 of 20" in rows
    assert "right 0 of 3 1 of 3" in rows
    assert "over-refuses 3 of 3 1 of 3" in rows
    assert "over-complies 0 of 3 1 of 3" in rows
    assert "system prompt 10 → 0 of 10 0 → 0 of 10 10 → 0 of 10" in rows
    assert "figure value 90 % interval n" in rows
    assert "quality 0.900 0.850 to 0.950 20" in rows
    assert "retention 1.000 0.861 to 1.000 20" in rows
    assert any("undecided at n = 20" in r and "begins at 0.861" in r for r in rows)
    assert "20 of 20" in text
    assert "10 of 20" in text
    assert "topic 1" in text


def test_examples_are_one_of_each_set_and_safe_to_print():
    made = result()
    assert [e.prompt.set for e in examples(made)] == ["target", "keep", "baseline"]
    text = printed(example_text(made))
    assert "\x1b" not in text
    assert "[bold]x[/]" in text  # shown, not taken for markup
    assert "Press Ctrl-C twice." in text


def test_the_example_is_one_paragraph_that_ended_and_does_not_repeat_itself():
    made = result()
    replies = {
        "This is cut.": range(100),
        "This is a loop.": [1, 2, 3, 4] * 10,
        "This is short.": range(10),
        "This is the best.": range(32),
        "This is\na list": range(30),
    }
    asked = [
        replace(e, after=replace(ANSWERED, text=text, tokens=tuple(tokens)))
        for e, (text, tokens) in zip(made.measurement.exchanges, replies.items(), strict=False)
    ]
    made = replace(made, measurement=replace(made.measurement, exchanges=tuple(asked)))
    assert [e.after.text for e in examples(made)] == ["This is the best."]


def test_a_stage_under_a_floor_is_marked():
    stage = result().stages[0]
    assert "under a floor" not in stage_line(stage)
    assert (
        "removal 0.50, retention 1.000 (at least 0.861), quality 0.900 (at least 0.850), KL 0.100"
    ) in stage_line(stage)


def test_bars_are_scaled_to_the_largest_and_never_negative():
    rows = printed(layer_bars({"a": [0.5, 1.0, -1.0]}, 2)).splitlines()
    assert rows[1].split()[:3] == ["0", "shallow", "0.50"]
    assert 2 * rows[1].count("█") == rows[2].count("█") > 10
    assert rows[3].count("█") == 0


def test_plain_text_is_one_printable_line():
    assert plain("a\n\tb\x1b[0m\u202ec") == "a b [0m c"
    assert plain("x" * 20, 5) == "xxxx…"


def test_what_is_not_finite_is_said_in_tables():
    shown = printed(layer_bars({"x": [1.0, float("nan"), float("inf")]}))
    assert shown.count("not finite") == 2
    assert "█" in shown
    assert (number(None, ".2f"), number(0.125, ".2f")) == ("–", "0.12")

"""A result in a few lines, as a table of replies, and in a notebook."""

import builtins
import re
from dataclasses import replace

import pytest

from tests.results import HOSTILE, result
from unrefuse.errors import UnrefuseError


def test_the_summary_says_what_was_done_and_what_became_of_it(tmp_path):
    text = result(tmp_path / "out", removal=0.8).summary()
    lines = [re.sub(" +", " ", line) for line in text.splitlines()]
    assert lines[0].endswith(": demo, method selective")
    assert "kernel peak and width (peak 0.6, width 0.15), multiplier 0.65" in lines
    assert "measured test split, replies of 100 tokens" in lines
    assert "removal 0.800 (0.599 to 0.929, n 20)" in lines
    assert "quality 0.900 (0.850 to 0.950, n 20)" in lines
    assert "refused target 20 to 4 of 20, baseline 0 to 0 of 20, keep 20 to 20 of 20" in lines
    assert f"saved {tmp_path / 'out'}" in lines
    assert repr(result(tmp_path / "out", removal=0.8)) == text


def test_the_summary_of_a_run_that_missed_says_why():
    text = replace(result(model=HOSTILE), reasons=["removal 0.50 is low", HOSTILE]).summary()
    assert "nothing: the goal is not met" in text
    assert "removal 0.50 is low" in text
    assert "\x1b" not in text


def test_examples_are_exchanges():
    assert [e.prompt.set for e in result().examples()] == ["target", "keep", "baseline"]


def test_replies_as_a_table():
    made = result(removal=0.5)
    table = made.to_dataframe()
    assert len(table) == len(made.measurement.exchanges)
    target = table[table["set"] == "target"]
    assert (target["grade_before"] == "refused").all()
    assert (target["grade_after"] == "answered").mean() == 0.5
    assert target["after"].iloc[0] == "Press Ctrl-C twice."


def test_without_pandas_it_says_what_to_install(monkeypatch):
    def without(name, *rest, real=builtins.__import__):
        if name == "pandas":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnrefuseError, match="pip install pandas"):
        result().to_dataframe()


def test_a_notebook_shows_tables_and_runs_nothing_of_what_a_model_wrote():
    page = result()._repr_html_()
    assert "<img" not in page
    assert "&lt;img" in page
    assert "retention" in page
    assert "matched pairs" in page

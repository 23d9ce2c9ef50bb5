"""The plan of a run, told before it, and about how long it takes."""

import re
from dataclasses import replace

import pytest

from tests import pico
from tests.results import prompts
from unrefuse.jobs.outlook import outlook
from unrefuse.report.terminal import duration

SPLITS = ("train", "search", "test")
COUNT = 17  # of each set and split


@pytest.fixture(scope="module")
def model():
    return pico.loaded()


def told(model, tmp_path, splits=SPLITS, **settings):
    config = pico.run_config("m", out=tmp_path / "x", **settings)
    asked = [p for split in SPLITS for p in prompts(split, COUNT)]
    return outlook(model, asked, splits, config)


def test_an_edit_says_what_it_asks_tries_tests_and_writes(model, tmp_path):
    plan, time = told(model, tmp_path).splitlines()
    # Of train no keep prompts, and pairs only of test.
    assert f"ask the original {(2 + 3 + 5) * COUNT} prompts" in plan
    assert "try up to 11 strengths from 0.5" in plan
    assert f"test the best on {5 * COUNT} prompts" in plan
    assert f"write it to {tmp_path / 'x'} if it keeps the floors" in plan
    assert re.fullmatch(r"time: about \d+ (s|min)", time)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "ablate"}, f"ask the original {(3 + 3 + 5) * COUNT} prompts"),
        ({"strength": 0.8}, "try the strength 0.8"),
        ({"tune": "optuna", "trials": 7}, "score 7 trials, test the best"),
        ({"tune": "grid"}, "score 25 trials, try up to 11 strengths"),
    ],
)
def test_the_plan_is_that_of_the_settings(model, tmp_path, settings, says):
    assert says in told(model, tmp_path, **settings)


def test_an_analysis_edits_nothing_and_a_streamed_model_gives_no_time(model, tmp_path):
    plan = told(model, tmp_path, SPLITS[:2]).splitlines()[0]
    assert "measure 3 layers, edit nothing" in plan
    assert "write" not in plan
    assert "time" not in told(replace(model, stream=object()), tmp_path)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (250, "4 min"), (9000, "2.5 h")]
)
def test_a_time_in_words(seconds, words):
    assert duration(seconds) == words

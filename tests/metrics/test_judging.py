"""The figures by a judge's grades, from made-up measurements and a real server."""

from dataclasses import replace

import numpy as np
import pytest

from tests.results import ANSWERED, REFUSED, measurement, pairs
from tests.server import completion, quick, scripted, serving
from unrefuse.engine.endpoint import Endpoint
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.chat_judge import KEY
from unrefuse.metrics.judging import measured_by
from unrefuse.metrics.measurement import Context, measurement_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    quick(monkeypatch, tmp_path)


def measured(**figures):
    """20 prompts a set, two pairs and a context; a divergence for every baseline prompt but one."""
    exchanges = measurement(**figures).exchanges
    rows = {e.prompt.text: np.array([0.1, 5.0]) for e in exchanges if e.prompt.set == "baseline"}
    rows.popitem()
    asked = exchanges + pairs([(True, True)] * 2, [(False, True)] * 2)
    return measurement_of(asked, (Context("system prompt", (), exchanges[:3]),), rows, 0)


def by(reading):
    """A judge that grades as `reading` says of the prompt and the reply that it is sent."""

    def answer(body):
        return completion(reading(body["messages"][-1]["content"]))

    return answer


def like_the_detector(text):
    return "refused" if "sorry" in text else "answered"


def ask(answer, before):
    with serving(answer) as (url, _):
        return measured_by(Endpoint(url, "m", KEY), before, 0)


def test_a_judge_that_agrees_changes_no_figure():
    before = measured(removal=0.5, retention=0.95)
    after, agreed = ask(by(like_the_detector), before)
    assert after.figures() == before.figures()
    assert after.quality.n == 19
    assert {e.after.judge for e in after.exchanges if e.after.grade == "refused"} != {"builtin"}
    assert [e.after.grade for e in after.exchanges] == [e.after.grade for e in before.exchanges]
    assert agreed["n"] == agreed["agreed"] == 2 * (60 + 4 + 3)
    assert agreed["kappa"] == 1


def test_every_figure_follows_the_judge():
    """It takes all that is said on three keep prompts for answers, before and after, and one reply
    to a target prompt for partly one."""

    def reading(text):
        if any(f"keep {i} " in text for i in (1, 2, 3)):
            return "answered"
        if "target 0 " in text and "Ctrl" in text:
            return "partly"
        return like_the_detector(text)

    before = measured(removal=0.5, retention=1.0)
    after, agreed = ask(by(reading), before)
    assert (after.retention.value, after.retention.n) == (1, 17)  # by the judge three never refused
    assert after.removal.value == pytest.approx(before.removal.value - 1 / 20)
    assert after.contexts[0].exchanges[0].after.grade == "partly"
    assert agreed["differences"] == {"answered -> partly": 2, "refused -> answered": 6}
    assert before.exchanges[0].after == ANSWERED  # nothing is changed in place


def test_an_original_that_refused_too_little_by_the_judge_is_told():
    with pytest.raises(UnrefuseError, match="has refused only 0 target prompts, and 16 are needed"):
        ask(scripted(completion("answered")), measured())


def test_a_judge_that_fails_is_told():
    with pytest.raises(UnrefuseError, match="status 500"):
        ask(scripted((500, {}, {})), measured())


def test_broken_replies_are_the_detectors():
    before = measured()
    exchanges = list(before.exchanges)
    exchanges[0] = replace(exchanges[0], after=replace(REFUSED, text="", tokens=(), grade="broken"))
    after, agreed = ask(by(like_the_detector), replace(before, exchanges=tuple(exchanges)))
    assert (after.exchanges[0].after.grade, after.exchanges[0].after.judge) == ("broken", "builtin")
    assert agreed["n"] == 2 * (60 + 4 + 3) - 1

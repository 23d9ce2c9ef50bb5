"""What run.json keeps of the search split: replies by grade and topic, those that count alone."""

from dataclasses import replace

from tests.results import ANSWERED, measurement
from unrefuse.engine.generate import Reply
from unrefuse.kernel import gaussian
from unrefuse.metrics.measurement import Before
from unrefuse.report.searched import original_record, stage_record
from unrefuse.search.stage import Stage

LOOP = Reply("on and on", (1, 2), "broken")


def test_a_stage_and_the_original_are_counted_by_grade_and_topic():
    measured = measurement(removal=0.5, retention=0.9)  # 20 prompts a set, two topics
    exchanges = list(measured.exchanges)
    exchanges[0] = replace(exchanges[0], before=ANSWERED)  # a target prompt in no count
    exchanges[1] = replace(exchanges[1], after=LOOP)
    exchanges[2] = replace(exchanges[2], after=Reply("<think>well", (1,), "broken"))
    measured = replace(measured, exchanges=tuple(exchanges))
    record = stage_record(Stage("s", gaussian(6, 0.6, 0.15), 0.5, (), measured, True))
    assert record["grades"]["target"] == {"answered": 7, "broken": 2, "refused": 10}
    assert record["grades"]["keep"] == {"refused": 18, "answered": 2}
    assert record["topics"]["target"] == {"topic 0": [3, 9], "topic 1": [4, 10]}
    assert record["topics"]["keep"] == {"topic 0": [9, 10], "topic 1": [9, 10]}
    assert record["unended"] == 1
    original = original_record(Before("search", measured.exchanges))
    assert original["target"]["grades"] == {"answered": 1, "refused": 19}
    assert original["target"]["topics"] == {"topic 0": [9, 10], "topic 1": [10, 10]}
    assert original["baseline"]["grades"] == {"answered": 20}

"""The report of an evaluation, from made-up replies."""

from dataclasses import replace

import pytest

from tests.metrics.test_transcripts import line
from tests.report.test_results import printed
from tests.results import HOSTILE
from unrefuse.metrics.transcripts import compare
from unrefuse.report.evaluation import (
    Evaluation,
    comparison_tables,
    evaluation_tables,
    figures,
)
from unrefuse.report.lines import retention_line

PARTS = {
    "config": {"seed": 0, "retention_bound": 0.95},
    "models": {},
    "perplexity": {
        "before": {"en": {"value": 9.5, "n": 7}},
        "after": {"en": {"value": 10, "n": 7}},
    },
    "benchmarks": {
        when: {"arc acc": {"value": v, "stderr": 0.01, "n": 9}}
        for when, v in (("before", 0.25), ("after", 0.3))
    },
}


def asked(set, before, after, n=1, **fields):
    """`n` prompts with the original's grade and the model's."""
    for i in range(n):
        first = line(f"{set} {before} {after} {i}", before, set, "before", topic=f"t{i % 2}")
        kl = (0.32, 32) if (set, before) == ("baseline", "answered") else None
        yield from (first, replace(first, grade=after, when="after", kl=kl, **fields))


def lines(**fields):
    return [
        *asked("target", "refused", "answered", 6, **fields),
        *asked("target", "refused", "partly"),
        *asked("target", "refused", "broken"),
        *asked("target", "answered", "refused", 2),
        *asked("baseline", "answered", "answered", 8),
        *asked("baseline", "answered", "broken", 2),
        *asked("baseline", "broken", "answered"),
        *asked("keep", "refused", "refused", 76),
        *asked("keep", "refused", "answered", 2),
        *asked("keep", "answered", "refused", 5),
    ]


def test_figures_follow_from_the_grades():
    found = figures(lines(), 0, 0.95)
    assert (found["removal"]["value"], found["removal"]["n"]) == (6 / 8, 8)
    assert (found["retention"]["value"], found["retention"]["n"]) == (76 / 78, 78)
    assert found["kl"]["value"] == pytest.approx(0.01)
    assert found["quality"]["value"] == pytest.approx(0.8 * 2.718281828**-0.01)
    assert found["quality"]["n"] == 10
    assert found["refused"]["target"] == {"before": [8, 10], "after": [2, 10]}
    assert found["grades"]["after"]["target"] == {
        "refused": 2, "partly": 1, "answered": 6, "broken": 1,
    }  # fmt: skip
    assert found["broken"]["after"]["value"] == pytest.approx(3 / 104)
    topics = found["rates"]["before"]["target"]["by_topic"]
    assert sum(e["n"] for e in topics.values()) == 10
    test = found["retention_test"]
    assert (test["decision"], test["lost"], test["gained"]) == ("undecided", 2, 5)
    assert test["p"] == pytest.approx(58 / 128)  # 2 (1 + 7 + 21) / 2^7
    assert test["lower"] == pytest.approx(0.9215, abs=1e-4)
    assert "undecided at n = 78: about 260 needed" in retention_line(test)


def test_a_share_of_no_prompt_is_none():
    found = figures([*asked("keep", "answered", "refused", 3)], 0, 0.95)
    assert [found[n] for n in ("removal", "retention", "quality", "kl")] == [None] * 4
    assert found["retention_test"] is None
    assert found["refused"] == {"keep": {"before": [0, 3], "after": [3, 3]}}


@pytest.mark.parametrize(
    ("kept", "lost", "says"),
    [
        (100, 0, "0.95 or more: shown, at n = 100"),
        (50, 50, "0.95 or more: the opposite is shown, at n = 100"),
        (19, 1, "undecided at n = 20: no number of prompts decides"),
    ],
)
def test_decisions_in_words(kept, lost, says):
    rows = [*asked("keep", "refused", "refused", kept), *asked("keep", "refused", "answered", lost)]
    assert says in retention_line(figures(rows, 0, 0.95)["retention_test"])


def test_the_tables_say_the_figures_and_print_untrusted_text_safely():
    pairs = [
        replace(line(f"{set} {HOSTILE}", grade, set), pair="1", when=when)
        for when in ("before", "after")
        for set, grade in (("harmless", "answered"), ("harmful", "refused"))
    ]
    agreement = {"kappa": 0.5, "n": 9, "agreed": 7, "differences": {}}
    made = Evaluation([*lines(topic=HOSTILE), *pairs], "hf:x", agreement, PARTS)
    made = replace(made, lines=[replace(x, topic=HOSTILE) for x in made.lines])
    text = printed(evaluation_tables(made))
    assert "\x1b" not in text
    for said in ("0.75", "8 of 10", "about 260 needed", "over_refuses", "9.50", "0.300 ± 0.010",
                 "7 of 9 replies, Cohen's kappa 0.50"):  # fmt: skip
        assert said in text
    alone = replace(made, lines=[x for x in made.lines if x.when == "after"], agreement=None)
    text = printed(evaluation_tables(replace(alone, parts={"config": PARTS["config"]})))
    assert "removal" not in text
    assert "2 of 10" in text


def test_a_comparison_names_what_changed():
    first, second = ([line(HOSTILE, grade)] for grade in ("refused", "answered"))
    text = printed(comparison_tables(compare([*first, line("y")], second)))
    assert "1 prompts changed grade; 1 replies are in one run only" in text
    assert "keep: refused -> answered: target" not in text
    assert "keep: refused -> answered: [bold]x[/]" in text
    assert "\x1b" not in text

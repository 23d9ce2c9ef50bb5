"""The learned detector: what it reads, its weights against slow formulas, how sure it is."""

import math
import re
import time

import numpy as np
import pytest

from benchmarks.detector import replies
from unrefuse.detector.features import (
    BUCKETS,
    CLASSES,
    normal,
    read,
    scores,
    sentences,
    summary,
    without_question,
)
from unrefuse.detector.learned import WEIGHTS, Probabilities, Weights, probabilities, unsure


def test_weights_are_small_and_fast():
    assert WEIGHTS.stat().st_size < 1e6
    rows = [row for row in replies("held_out") if len(row["reply"]) > 100][:300]
    weights = Weights.load(WEIGHTS)
    times = []
    for _ in range(3):
        begin = time.process_time()
        for row in rows:
            weights(row["reply"], row["prompt"])
        times.append((time.process_time() - begin) / len(rows))
    assert min(times) < 3e-3  # 0.4 ms; machines differ


def test_eight_bits_change_no_more_than_a_little(tmp_path):
    shipped = Weights.load(WEIGHTS)
    shipped.save(tmp_path / "again.npz")
    again = Weights.load(tmp_path / "again.npz")
    for name in Weights._fields:
        wanted = getattr(shipped, name)
        assert np.abs(getattr(again, name) - wanted).max() <= np.abs(wanted).max() / 100


def test_sentences_and_quotations():
    text = normal('I can’t **help**. "No" is what I\'d say!\nWait.\n\n他不会。真的不会的。')
    assert sentences(text) == [
        ["i", "can", "not", "help", "."],
        ['"', "q", '"', "is", "what", "i", "would", "say", "!"],
        ["wait", ".", *"他不会。"],  # what is shorter than four tokens is read with what follows
        [*"真的不会的。"],
    ]
    assert sentences('"i will not help you."')[0][0] == '"'  # quoted from end to end
    long = sentences(". ".join(f"this is part number {n}" for n in range(40)))
    assert len(long) == 10
    assert long[-1][-1] == "39"


def test_what_is_thought_is_not_read():
    assert normal("<think>I can't help.</think>It is red.") == "it is red."
    question = "how do i get into the shed?"
    assert without_question(f"{question} it opens.", question) == "it opens."
    assert without_question("hello! hello!", "hello!") == "hello! hello!"


def test_a_sentence_is_read_alone_and_in_its_place():
    """Each sentence has the same n-grams wherever it stands; the whole reply tells where."""
    here, there = "i can not tell you that.", "use a long fork for it."
    one, two = read(f"{here} {there}"), read(f"{there} {here}")
    alone = read(here)
    for reading, place in ((one, 0), (two, 1), (alone, 0)):
        mine = reading.owner == place
        assert reading.buckets[mine].tolist() == alone.buckets.tolist()
        # Unit length.
        assert (reading.weights[mine] ** 2).sum() == pytest.approx(1)
    first, second = (set(r.whole_buckets.tolist()) for r in (one, two))
    assert first != second
    assert len(first & second) > 0.4 * len(first)


def test_scores_are_sums_over_ngrams():
    reading = read(normal("I can't tell you that. Use a long fork, and turn it slowly twice."))
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(2, BUCKETS, len(CLASSES)))
    by_sentence, whole = scores(reading, *tables)
    for n in range(2):
        wanted = sum(
            tables[0][bucket] * weight
            for bucket, weight, owner in zip(
                reading.buckets, reading.weights, reading.owner, strict=True
            )
            if owner == n
        )
        assert by_sentence[n] == pytest.approx(wanted)
    wanted = sum(
        tables[1][bucket] * weight
        for bucket, weight in zip(reading.whole_buckets, reading.whole_weights, strict=True)
    )
    assert whole == pytest.approx(wanted)


def test_a_summary_says_where_the_refusal_stands_and_what_is_named():
    reading = read("it has five pins. i can not say more. ask a smith.")
    marks = np.array([[-1.0, 0, 1], [3, 0, -1], [0, 2, 0]])
    found = summary(reading, normal("Which locks have five pins?"), marks, np.zeros(3)).tolist()
    assert found[:3] == [-1, 0, 1]  # first
    assert found[3:6] == [3, 0, -1]  # second
    assert found[6:9] == [0, 2, 0]  # last
    assert found[9:12] == [3, 2, 1]  # strongest
    assert found[15:18] == [0, 2, 0]  # after the refusal
    assert found[18:21] == [-1, 0, 1]  # before it
    # which, locks, have, five, pins: two of five, both in the first sentence
    assert found[-6:-3] == [1, 0.4, 0.4]
    assert summary(reading, "", marks, np.zeros(3)).tolist()[-6:-3] == [0, 0, 0]


def test_probabilities_are_those_of_the_two_layers():
    """Against the formula in plain Python, from the reading on."""
    weights = Weights.load(WEIGHTS)
    for row in replies("held_out")[:20]:
        asked = normal(row["prompt"])
        reading = read(without_question(normal(row["reply"]), asked))
        sentence, whole = scores(reading, weights.sentence, weights.whole)
        features = summary(
            reading, asked, sentence + weights.sentence_bias, whole + weights.whole_bias
        )
        logits = [
            sum(x * w for x, w in zip(features, weights.second[:, k], strict=True))
            + weights.second_bias[k]
            for k in range(3)
        ]
        total = sum(math.exp(x) for x in logits)
        found = probabilities(row["reply"], row["prompt"])
        assert list(found) == pytest.approx([math.exp(x) / total for x in logits])
        assert found.grade == CLASSES[logits.index(max(logits))]


@pytest.mark.parametrize(
    "text", ["", " \n", "...", "\ufffd", "?", "ß", "🙂", "<think>", "a" * 5000]
)
def test_any_text_has_probabilities(text):
    assert sum(probabilities(text, text)) == pytest.approx(1)


def test_unsure_lies_between_two_thresholds():
    assert Probabilities(0.5, 0.1, 0.4).unsure
    assert Probabilities(0.1, 0.4, 0.5).unsure
    assert not Probabilities(0.8, 0.15, 0.05).unsure
    assert not Probabilities(0.05, 0.9, 0.05).unsure
    sure = ("I'm sorry, but I can't assist with that.", "How do I steal a bus?")
    assert unsure([sure]) == 0
    assert unsure([]) == 0
    rows = [(row["reply"], row["prompt"]) for row in replies("held_out")]
    doubtful = [pair for pair in rows if probabilities(*pair).unsure]
    assert 0 < unsure(rows) == len(doubtful) / len(rows) < 0.25
    assert unsure([doubtful[0], sure]) == 0.5


def test_where_it_is_unsure_it_errs_more():
    rows = [row for row in replies("held_out") if row["label"] in CLASSES]
    wrong: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        found = probabilities(row["reply"], row["prompt"])
        wrong[found.unsure].append(found.grade != row["label"])
    assert np.mean(wrong[True]) > 3 * np.mean(wrong[False])


def test_fit_is_the_same_each_time_and_learns():
    pytest.importorskip("sklearn")
    from tools.detector.fit import fit, fold
    from tools.detector.fit import replies as learned

    rows = [row for row in learned() if re.match("written", row["source"])]
    kept, judged = (
        [row for row in rows if (fold(row["prompt"], 4) == 0) is held] for held in (False, True)
    )
    weights = fit(kept)
    for one, other in zip(weights, fit(kept), strict=True):
        assert np.array_equal(one, other)
    right = sum(weights(row["reply"], row["prompt"]).grade == row["label"] for row in judged)
    assert right > 0.6 * len(judged)

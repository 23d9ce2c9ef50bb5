"""The shipped prompt sets: sizes, fields, shares, and no wording shared between splits."""

import json
import re
import unicodedata
from collections import Counter
from functools import cache
from importlib.resources import files

import pytest

Row = dict[str, str]

SETS = ("target", "baseline", "keep")
SPLITS = ("train", "search", "test")
KEYS = ["prompt", "set", "topic", "lang", "split"]
AT_LEAST = {"target": 320, "baseline": 320, "keep": 1000}
LANG_SHARES = {"en": (0.65, 0.75), "zh": (0.15, 0.25), "ja": (0.07, 0.13)}
ALARMING = {
    "homonym",
    "figure_of_speech",
    "safe_target",
    "fiction",
    "definition",
    "history_violence",
    "public_facts",
}
TOPICS = {
    "baseline": {
        "science",
        "mathematics",
        "coding",
        "cooking",
        "travel",
        "health_everyday",
        "writing",
        "language",
        "household",
        "music_art",
        "sport",
        "nature",
        "geography",
        "history_neutral",
        "work",
        "technology",
        "advice",
        "small_talk",
    },
    "keep": {
        "weapons",
        "drugs",
        "violence",
        "fraud",
        "hacking",
        "privacy",
        "hate",
        "harassment",
        "extremism",
        "self_harm",
        "theft",
        "child_safety",
        "disinformation",
        "trafficking",
        "poisoning",
        "sabotage",
        "atrocity_praise",
        "dehumanising",
        "private_data",
        "everyday_violence",
        "sexual_exploitation",
        "bad_advice",
    },
}
NEAR = 0.5  # overlap of n-grams from which two prompts of different splits are too alike


@cache
def rows(name: str) -> list[Row]:
    """The rows of one shipped file, in order."""
    text = (files("unrefuse.prompts") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def all_rows() -> list[Row]:
    return [row for name in SETS for row in rows(name)]


def ngrams(prompt: str, lang: str) -> frozenset[str]:
    """Character trigrams (bigrams of Chinese and Japanese) of the lower-cased word characters."""
    size = 3 if lang == "en" else 2
    text = re.sub(r"\W+", "", prompt.lower())
    return frozenset(text[i : i + size] for i in range(max(1, len(text) - size + 1)))


def near_duplicates(candidates: list[Row]) -> list[tuple[float, str, str]]:
    """Pairs of prompts of different splits whose n-grams overlap (Jaccard) by NEAR or more.

    English is compared with English, and Chinese and Japanese with each other.
    """
    prepared = [(r["split"], r["lang"] == "en", ngrams(r["prompt"], r["lang"])) for r in candidates]
    found = []
    for i, (split, english, grams) in enumerate(prepared):
        for j in range(i):
            other_split, other_english, other = prepared[j]
            if other_split == split or other_english != english:
                continue
            shared = len(grams & other)
            overlap = shared / (len(grams) + len(other) - shared)
            if overlap >= NEAR:
                found.append((round(overlap, 2), candidates[j]["prompt"], candidates[i]["prompt"]))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("name", SETS)
def test_there_are_enough_prompts(name: str) -> None:
    assert len(rows(name)) >= AT_LEAST[name]


@pytest.mark.parametrize("name", SETS)
def test_keys_and_values_are_allowed(name: str) -> None:
    for number, row in enumerate(rows(name), start=1):
        place = f"{name}.jsonl:{number}"
        assert list(row) == KEYS, place
        assert all(isinstance(value, str) for value in row.values()), place
        assert row["prompt"], place
        assert row["prompt"] == row["prompt"].strip(), place
        assert row["set"] == name, place
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row["topic"]), place
        assert row["lang"] in LANG_SHARES, place
        assert row["split"] in SPLITS, place


@pytest.mark.parametrize("name", sorted(TOPICS))
def test_topics_are_the_known_ones(name: str) -> None:
    assert {row["topic"] for row in rows(name)} == TOPICS[name]


@pytest.mark.parametrize("name", SETS)
def test_language_shares(name: str) -> None:
    counts = Counter(row["lang"] for row in rows(name))
    for lang, (low, high) in LANG_SHARES.items():
        share = counts[lang] / counts.total()
        assert low <= share <= high, f"{name}: {share:.3f} of the prompts are {lang}"


@pytest.mark.parametrize("name", SETS)
def test_every_split_is_there_in_every_language(name: str) -> None:
    found = {(row["lang"], row["split"]) for row in rows(name)}
    assert found == {(lang, split) for lang in LANG_SHARES for split in SPLITS}


def test_more_than_half_of_the_target_prompts_are_alarming() -> None:
    topics = Counter(row["topic"] for row in rows("target"))
    assert topics.keys() >= ALARMING
    share = sum(topics[topic] for topic in ALARMING) / topics.total()
    assert 0.55 <= share <= 0.65


def test_no_prompt_occurs_twice() -> None:
    counts = Counter(
        " ".join(unicodedata.normalize("NFKC", row["prompt"]).casefold().split())
        for row in all_rows()
    )
    assert [prompt for prompt, count in counts.items() if count > 1] == []


def test_no_wording_is_shared_between_splits() -> None:
    assert near_duplicates(all_rows()) == []


def test_near_duplicates_are_found() -> None:
    first = {"prompt": "How do I bake bread?", "lang": "en", "split": "train"}
    second = {"prompt": "How do I bake a bread", "lang": "en", "split": "test"}
    assert len(near_duplicates([first, second])) == 1
    assert near_duplicates([first, second | {"split": "train"}]) == []
    assert near_duplicates([first, second | {"prompt": "Name a river."}]) == []


def test_keep_prompts_are_one_short_line() -> None:
    assert [
        row["prompt"]
        for row in rows("keep")
        if len(row["prompt"]) > 90 or len(row["prompt"].splitlines()) != 1
    ] == []

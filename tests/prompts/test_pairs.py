"""The shipped matched pairs, no word of one split in another, and a user's own beside them."""

import json
import re
from collections import Counter, defaultdict

import pytest

from tests.prompts.test_data import (
    LANG_SHARES,
    TOPICS,
    all_rows,
    near_duplicates,
    ngrams,
    rows,
)
from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.pairs import PAIR_SETS, load_pairs
from unrefuse.prompts.sets import SPLITS, check_prompts, load_prompts, select

KEYS = ["id", "harmless", "harmful", "topic", "lang", "split", "verb", "frame"]
AT_LEAST = {"train": 600, "search": 150, "test": 97}
SHARES = {"en": (0.55, 0.65), "zh": (0.20, 0.30), "ja": (0.10, 0.20)}  # of train and search
TESTED = {"en": 68, "zh": 19, "ja": 10}
PAIRS = rows("pairs")


def split(*names):
    return [row for row in PAIRS if row["split"] in names]


def prompts(pairs):
    """The rows of both prompts, as those of the three sets are."""
    return [row | {"prompt": row[name]} for row in pairs for name in PAIR_SETS]


def test_there_are_enough_in_each_split_and_language():
    for name, count in AT_LEAST.items():
        assert len(split(name)) >= count
    learned = Counter(row["lang"] for row in split("train", "search"))
    for lang, (low, high) in SHARES.items():
        assert low <= learned[lang] / learned.total() <= high
    tested = Counter(row["lang"] for row in split("test"))
    assert tested == TESTED
    for lang, (low, high) in LANG_SHARES.items():
        assert low <= tested[lang] / tested.total() <= high
    assert {(r["lang"], r["split"]) for r in PAIRS} == {(a, b) for a in SHARES for b in SPLITS}


def test_the_test_pairs_have_the_ids_that_they_always_had():
    wanted = [f"{lang}-{i:02}" for lang, count in TESTED.items() for i in range(1, count + 1)]
    assert sorted(row["id"] for row in split("test")) == sorted(wanted)
    for row in split("train", "search"):
        assert re.fullmatch(rf"{row['lang']}-{row['split']}-\d{{3}}", row["id"]), row["id"]
    assert len({row["id"] for row in PAIRS}) == len(PAIRS)


def test_each_is_one_short_line_of_a_known_topic():
    for row in PAIRS:
        assert list(row) == KEYS, row["id"]
        assert row["topic"] in TOPICS["keep"], row["id"]
        for name in PAIR_SETS:
            text = row[name]
            assert text == text.strip(), row["id"]
            assert 0 < len(text) <= 90, row["id"]
            assert text.isprintable(), row["id"]


def test_the_prompts_of_a_pair_share_their_words_as_far_as_they_go():
    for row in PAIRS:
        first, second = (ngrams(row[name], row["lang"]) for name in PAIR_SETS)
        assert len(first & second) / len(first | second) >= 0.15, row["id"]
        for name in PAIR_SETS:
            text = row[name].lower()
            assert row["verb"].lower() in text, row["id"]
            if row["lang"] != "ja":
                assert row["frame"].lower() in text, row["id"]
            assert row["verb"], row["id"]
            assert row["frame"], row["id"]


@pytest.mark.parametrize("field", ["verb", "frame"])
def test_no_verb_and_no_frame_stands_in_two_splits(field):
    where = defaultdict(set)
    for row in PAIRS:
        where[row["lang"], row[field].lower()].add(row["split"])
    assert [word for word, splits in where.items() if len(splits) > 1] == []


@pytest.mark.parametrize(("own", "others"), [("test", ("train", "search")), ("search", ("train",))])
def test_no_english_verb_is_a_word_of_a_pair_that_is_learned_from_before(own, others):
    words = {row["verb"].lower() for row in split(own) if row["lang"] == "en"}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(words)))})\b")
    english = [row for row in prompts(split(*others)) if row["lang"] == "en"]
    assert pattern.search(f"to {min(words)} it")
    assert [(r["id"], r["prompt"]) for r in english if pattern.search(r["prompt"].lower())] == []


def test_no_wording_is_shared_between_splits_nor_with_the_sets():
    mine = prompts(PAIRS)
    everything = [*mine, *all_rows(), *rows("planted")]
    counts = Counter(" ".join(row["prompt"].casefold().split()) for row in everything)
    assert [text for text, count in counts.items() if count > 1] == []
    assert near_duplicates(everything) == []


def test_a_test_pair_is_near_no_other_and_no_prompt_of_the_sets_of_any_split():
    tested = [row | {"split": row["id"]} for row in prompts(split("test"))]
    sets = [row | {"split": ""} for row in [*all_rows(), *rows("planted")]]
    assert near_duplicates([*tested, *sets]) == []


def config(**settings):
    return RunConfig(model="m", **settings)


def test_shipped_pairs_are_two_prompts_each():
    found = load_pairs(config())
    assert [p.text for p in found] == [row[name] for row in PAIRS for name in PAIR_SETS]
    for a, b, row in zip(found[::2], found[1::2], PAIRS, strict=True):
        assert (a.set, b.set) == PAIR_SETS
        assert a.pair == b.pair == row["id"]
        assert (b.topic, b.lang, b.split) == (row["topic"], row["lang"], row["split"])


def test_languages_and_a_limit_choose_pairs():
    assert {p.lang for p in load_pairs(config(languages=("zh",)))} == {"zh"}
    assert {p.lang for p in load_pairs(config(languages=("zh", "ja")))} == {"zh", "ja"}
    found = load_pairs(config(limit=16))
    for name in SPLITS:
        harmless, harmful = (select(found, kind, name) for kind in PAIR_SETS)
        assert [p.pair for p in harmless] == [p.pair for p in harmful]
        assert len(harmless) == (64 if name == "train" else 16)
        assert len({p.topic for p in harmless}) >= 8  # spread over the file
    assert load_pairs(config(limit=10_000)) == load_pairs(config())


def load(**settings):
    """Pairs as a run loads them: checked together with the sets."""
    found = load_pairs(config(**settings))
    check_prompts([*load_prompts(config(**settings)), *found])
    return found


OWN = [
    {"harmless": f"How do I decorate room {i}?", "harmful": f"How do I ransack room {i}?"}
    for i in range(8)
]


def write(file, pairs):
    if file.suffix == ".csv":
        keys = list(pairs[0])
        lines = [",".join(keys), *(",".join(f'"{row[k]}"' for k in keys) for row in pairs)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return file


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_own_pairs_come_beside_the_shipped_ones_for_train_and_search_alone(tmp_path, ending):
    file = write(tmp_path / f"mine{ending}", OWN)
    shipped, both = load_pairs(config()), load_pairs(config(pairs=file))
    assert both[: len(shipped)] == shipped
    own = both[len(shipped) :]
    assert [p.text for p in own] == [row[name] for row in OWN for name in PAIR_SETS]
    assert Counter(p.split for p in own) == {"train": 12, "search": 4}
    first = 2 if ending == ".csv" else 1
    for i, (a, b) in enumerate(zip(own[::2], own[1::2], strict=True)):
        assert (a.split, a.pair) == (b.split, b.pair)
        assert a.place == b.place == f"{file}:{i + first}"
    assert len({p.pair for p in own}) == 8
    assert load_pairs(config(pairs=file)) == both
    assert load_pairs(config(pairs=file, limit=16))[-16:] == own  # a limit leaves them all
    other = load_pairs(config(pairs=file, seed=1))
    assert [p.split for p in other] != [p.split for p in both]


def test_pairs_of_python_are_like_those_of_a_file(tmp_path):
    pairs = tuple((row["harmless"], row["harmful"]) for row in OWN)
    file = load_pairs(config(pairs=write(tmp_path / "p.jsonl", OWN)))
    given = config(pairs=pairs)
    assert [(p.text, p.set, p.split) for p in load_pairs(given)] == [
        (p.text, p.set, p.split) for p in file
    ]
    assert RunConfig.model_validate_json(given.model_dump_json()) == given
    with pytest.raises(UnrefuseError, match="pairs:2: a pair needs"):
        load_pairs(config(pairs=(("a", "b"), ("c", " "))))


def test_own_pairs_keep_their_topic_language_and_split_and_have_ids_of_their_own(tmp_path):
    own = [row | {"topic": "rooms", "lang": "en", "split": "search", "id": "en-01"} for row in OWN]
    found = load_pairs(config(pairs=write(tmp_path / "p.jsonl", own), languages=("zh",)))[-16:]
    assert {(p.topic, p.lang, p.split) for p in found} == {("rooms", "en", "search")}
    assert len({p.pair for p in found} - {"en-01"}) == 8


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.jsonl", '{"harmless": "a", "harmful": "b"}\n{"harmless": "c"}\n', ":2: a pair needs"),
        ("p.jsonl", '{"harmless": "a", "harmful": " "}\n', ":1: a pair needs"),
        ("p.jsonl", '["a", "b"]\n', ":1: a pair needs"),
        ("p.jsonl", '{"harmless": 5, "harmful": ["x"]}\n', ":1: a pair needs text"),
        ("p.jsonl", '{"harmless": "a", "harmful": "b"}\n{\n', ":2: not JSON"),
        ("p.jsonl", '{"harmless": "a", "harmful": "b", "split": "dev"}\n', ":1: split 'dev'"),
        ("p.csv", "harmless,harmful\na,b\nc\n", ":3: a pair needs"),
        ("p.csv", "harmless\na\n", ":2: a pair needs"),
        ("p.txt", "a\n", ":1: a pair needs"),
        ("p.jsonl", "", "no pairs in it"),
        ("p.jsonl", '{"harmless": "a", "harmful": "A "}\n', ":1: this harmful prompt is a harm"),
        (
            "p.jsonl",
            '{"harmless": "a", "harmful": "b"}\n{"harmless": "a", "harmful": "c"}\n',
            r":2: the same prompt as .*p\.jsonl:1",
        ),
    ],
)
def test_bad_pairs_are_named_by_file_and_line(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UnrefuseError, match=says) as caught:
        load(pairs=tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shipped_prompt_is_in_no_pair_of_ones_own(tmp_path):
    row = {name: PAIRS[0][name] for name in PAIR_SETS}
    with pytest.raises(UnrefuseError, match=r"p\.jsonl:1: the same prompt as shipped pairs:1"):
        load(pairs=write(tmp_path / "p.jsonl", [row]))
    # A prompt of the test split would be learned from.
    test = [p.text for p in select(load_prompts(config()), "keep", "test")]
    with pytest.raises(
        UnrefuseError, match=r"p\.jsonl:1: this harmful prompt is a keep prompt too"
    ):
        load(pairs=write(tmp_path / "p.jsonl", [{"harmless": "A vase", "harmful": test[0]}]))
    with pytest.raises(UnrefuseError, match=r"cannot read .*missing\.jsonl"):
        load_pairs(config(pairs=tmp_path / "missing.jsonl"))

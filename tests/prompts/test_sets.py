import json
from collections import Counter

import pytest

from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.rows import dataset_rows
from unrefuse.prompts.sets import (
    SETS,
    Prompt,
    find_problems,
    load_prompts,
    prompts_hash,
    read_set,
    same_text,
    select,
    split,
)

TEXTS = [f"Question number {i} on topic {i * 7}" for i in range(100)]


def write(file, kind, texts, column="prompt"):
    rows = [{column: text, "topic": "t"} for text in texts]
    if kind == "txt":
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "csv":
        lines = [f"{column},topic", *(f'"{text}",t' for text in texts)]
        file.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    return str(file)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_every_kind_of_file(tmp_path, kind):
    texts = ["Why, oh why?", "你好吗？", "third one"]
    prompts = read_set(write(tmp_path / f"p.{kind}", kind, texts), "target")
    assert [p.text for p in prompts] == texts
    assert {p.set for p in prompts} == {"target"}
    assert {p.topic for p in prompts} == ({""} if kind == "txt" else {"t"})


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_by_name(tmp_path, kind):
    file = write(tmp_path / f"p.{kind}", kind, ["a", "b"], column="text")
    assert [p.text for p in read_set(file, "keep", column="text")] == ["a", "b"]
    with pytest.raises(UnrefuseError, match=rf"p\.{kind}:\d+: no column 'prompt'.*--column"):
        read_set(file, "keep")


def test_a_data_set_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata").mkdir()
    write(tmp_path / "mydata" / "train.csv", "csv", ["a", "b"], column="text")
    rows = list(dataset_rows(str(tmp_path / "mydata"), "train"))
    assert [row["text"] for _, row in rows] == ["a", "b"]
    with pytest.raises(UnrefuseError, match="no such file, and `datasets` cannot load"):
        read_set("no-such-user/no-such-data", "target")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing.txt", r"cannot read missing\.txt"),
        ("why? " * 100, "no such file"),
        ("a\0b", "no such file"),
        ("", "must end in"),
    ],
)
def test_a_missing_file(monkeypatch, source, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnrefuseError, match=says):
        read_set(source, "target")


def test_problems_name_both_lines():
    prompts = [
        Prompt("One question", "target", source="a.txt", line=1),
        Prompt("", "target", source="a.txt", line=2),
        Prompt("one  QUESTION", "target", source="a.txt", line=3),
        Prompt("One question", "keep", source="b.txt", line=9),
    ]
    assert find_problems(prompts) == [
        "a.txt:2: the prompt is empty",
        "a.txt:3: the same prompt as a.txt:1",
        "b.txt:9: this keep prompt is a target prompt too (a.txt:1)",
    ]


def test_problems_stop_a_run(tmp_path):
    file = write(tmp_path / "p.txt", "txt", [*TEXTS, TEXTS[0]])
    with pytest.raises(UnrefuseError, match=r"p\.txt:101: the same prompt as .*p\.txt:1"):
        load_prompts(RunConfig(model="m", target=file))


def test_a_split_is_seeded_and_whole():
    prompts = [Prompt(text, "target") for text in TEXTS]
    done = split(prompts, seed=1)
    assert Counter(p.split for p in done) == {"train": 40, "search": 30, "test": 30}
    assert sorted(p.text for p in done) == sorted(TEXTS)
    assert done == split(prompts, seed=1) != split(prompts, seed=2)


def words(i):
    """A text in words of its own."""
    return " ".join(f"{(i * 7919 + k) * 104729 % 10_000_019:x}" for k in range(4))


def test_prompts_in_nearly_the_same_words_stay_in_one_split():
    own = [Prompt(f"{words(i)}?", "target") for i in range(100)]
    near = [Prompt(f"{words(i)}, please!", "target" if i % 2 else "keep") for i in range(50)]
    parts = {p.text: p.split for p in split([*own, *near], seed=1)}
    for i in range(50):
        assert parts[f"{words(i)}?"] == parts[f"{words(i)}, please!"]
    assert Counter(p.split for p in split(own, 1)) == {"train": 40, "search": 30, "test": 30}
    found = Counter(parts.values())
    assert found["train"] == pytest.approx(60, abs=3)
    assert found["search"] == pytest.approx(45, abs=3)


def test_a_prompt_goes_where_one_in_nearly_the_same_words_stands():
    given = [Prompt(f"{words(i)}?", "keep", split="test") for i in range(20)]
    own = [Prompt(f"{words(i)}, please!", "target") for i in range(40)]
    parts = {p.text: p.split for p in split([*given, *own], seed=1)}
    assert {parts[f"{words(i)}, please!"] for i in range(20)} == {"test"}
    assert {parts[p.text] for p in own} == {"train", "search", "test"}


def test_a_split_does_not_depend_on_the_order_and_a_prompt_more_moves_few():
    own = [Prompt(words(i), "target") for i in range(200)]
    parts = {p.text: p.split for p in split(own, 1)}
    assert {p.text: p.split for p in split(own[::-1], 1)} == parts
    more = {p.text: p.split for p in split([*own, Prompt(words(999), "target")], 1)}
    assert sum(parts[text] != more[text] for text in parts) <= 3


def test_given_splits_stay():
    prompts = [Prompt(text, "target", split="test") for text in TEXTS[:5]]
    assert {p.split for p in split(prompts, 0)} == {"test"}


def test_a_test_file_is_seen_by_no_other_step(tmp_path):
    main = write(tmp_path / "main.txt", "txt", TEXTS[:70])
    test = write(tmp_path / "test.txt", "txt", TEXTS[70:])
    prompts = load_prompts(RunConfig(model="m", target=main, test_target=test))
    assert {p.text for p in select(prompts, "target", "test")} == set(TEXTS[70:])
    assert len(select(prompts, "target", "train")) == 40
    assert len(select(prompts, "target", "search")) == 30


def keep_of(prompts):
    """Per split the keep prompts that are shipped, and those that are not."""
    return {
        part: [
            {p.text for p in select(prompts, "keep", part) if (p.source == "shipped") == shipped}
            for shipped in (True, False)
        ]
        for part in ("train", "search", "test")
    }


def test_keep_prompts_of_ones_own_stand_beside_the_shipped(tmp_path):
    file = write(tmp_path / "keep.csv", "csv", TEXTS, column="text")
    test = write(tmp_path / "test.csv", "csv", [f"{t}, in the test" for t in TEXTS], column="text")
    target = write(tmp_path / "target.csv", "csv", [f"{t}?" for t in TEXTS], column="text")
    baseline = write(tmp_path / "baseline.csv", "csv", [f"{t}!" for t in TEXTS], column="text")
    sets = {"target": target, "baseline": baseline, "column": "text"}
    shipped = {part: own[0] for part, own in keep_of(load_prompts(RunConfig(model="m"))).items()}
    assert len(shipped["test"]) > 300
    for settings, own in (
        ({"keep": file}, {"train": 40, "search": 30, "test": 30}),
        ({"keep": file, "test_keep": test}, {"train": 60, "search": 40, "test": 100}),
        ({"test_keep": test}, {"train": 0, "search": 0, "test": 100}),
        # A file of what is shipped adds nothing, and moves nothing into another split.
        ({"keep": "shipped", "test_keep": "shipped"}, {"train": 0, "search": 0, "test": 0}),
    ):
        found = keep_of(load_prompts(RunConfig(model="m", **sets, **settings)))
        assert {part: both[0] for part, both in found.items()} == shipped
        assert {part: len(both[1]) for part, both in found.items()} == own
        assert not found["test"][1] & (found["train"][1] | found["search"][1])


def test_a_shipped_prompt_in_a_file_of_ones_own_stays_in_its_split(tmp_path):
    test = select(read_set("shipped", "keep"), "keep", "test")[0].text
    rows = [{"prompt": f"  {test.upper()} ", "split": "train"}, {"prompt": "Another", "split": ""}]
    file = tmp_path / "keep.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts(RunConfig(model="m", keep=str(file)))
    assert [p.split for p in found if same_text(p.text) == same_text(test)] == ["test"]
    target = write(tmp_path / "target.txt", "txt", [test])
    with pytest.raises(
        UnrefuseError, match=r"shipped:\d+: this keep prompt is a target prompt too"
    ):
        load_prompts(RunConfig(model="m", target=target, keep=str(file)))


def test_neither_a_language_nor_a_limit_takes_the_place_of_the_shipped_keep_prompts(tmp_path):
    file = write(tmp_path / "keep.txt", "txt", [f"{t} {i}" for t in TEXTS for i in range(9)])
    for settings in (
        {},
        {"languages": ("ja",)},
        {"limit": 16},
        {"languages": ("ja",), "limit": 16},
    ):
        alone = keep_of(load_prompts(RunConfig(model="m", **settings)))
        found = keep_of(load_prompts(RunConfig(model="m", keep=file, **settings)))
        for part, (shipped, own) in found.items():
            assert shipped == alone[part][0]
            assert len(shipped) >= 31
            most = {"train": 128}.get(part, 32) if "limit" in settings else 900
            assert 0 < len(own) <= most  # of no known language


def test_languages_and_limit():
    prompts = load_prompts(RunConfig(model="m", languages=("zh",), limit=16))
    assert {p.lang for p in prompts} == {"zh"}
    counts = Counter((p.set, p.split) for p in prompts)
    assert {name: counts[name, "test"] for name in SETS} == {
        "target": 16,
        "baseline": 16,
        "keep": 32,
    }
    # Spread over the file: a limit does not cut topics off.
    english = load_prompts(RunConfig(model="m", languages=("en",), limit=32))
    assert len({p.topic for p in select(english, "baseline", "test")}) >= 15


@pytest.mark.parametrize("lang", ["en", "EN", "en-US", "de"])
def test_own_prompts_without_a_language_are_taken_in_any(tmp_path, lang):
    own = write(tmp_path / "p.txt", "txt", TEXTS)
    kept = write(tmp_path / "k.txt", "txt", [text + " K" for text in TEXTS])
    base = write(tmp_path / "b.txt", "txt", [text + " B" for text in TEXTS])
    config = RunConfig(model="m", target=own, keep=kept, baseline=base, languages=(lang,))
    assert {p.text for p in load_prompts(config) if p.source == own} == set(TEXTS)


def test_the_demo_takes_own_prompts(tmp_path):
    own = write(tmp_path / "p.txt", "txt", [*TEXTS, "你好吗？", "元気ですか", "잘 지내세요?"])
    found = [p for p in load_prompts(RunConfig(model="demo", target=own)) if p.set == "target"]
    assert {p.text for p in found} == set(TEXTS)  # the demo speaks English
    assert {p.split for p in found} == {"train", "search", "test"}


def test_a_language_that_a_set_does_not_have_is_told(tmp_path):
    with pytest.raises(
        UnrefuseError, match=r"shipped: no target prompts in fr \(found: en, ja, zh\)"
    ):
        load_prompts(RunConfig(model="m", languages=("fr",)))
    own = write(tmp_path / "p.txt", "txt", ["你好吗？", "谢谢你"])
    with pytest.raises(UnrefuseError, match=r"p\.txt: no target prompts in en \(found: zh\)"):
        load_prompts(RunConfig(model="demo", target=own))


def test_a_language_of_a_row_counts_and_its_region_does_not(tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "Hallo du", "lang": "DE-at"}, {"prompt": "你好吗？", "lang": "en"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [p.lang for p in read_set(str(file), "target")] == ["de", "en"]


def test_the_hash_sees_every_change():
    prompts = [Prompt(text, "target", split="test") for text in TEXTS[:3]]
    changed = [*prompts[:2], Prompt("other", "target", split="test")]
    assert prompts_hash(prompts) != prompts_hash(changed)
    assert prompts_hash(prompts) == prompts_hash(list(prompts))

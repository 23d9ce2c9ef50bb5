import json
from dataclasses import replace

import pytest

from unrefuse.errors import UnrefuseError
from unrefuse.metrics.transcripts import FILE, Line, compare, detected, read_transcripts, to_text


def line(prompt="Hi", grade="answered", set="keep", when="after", **fields):
    made = Line(prompt, set, "t", "en", "", when, "m", "Sure.", (1, 2), grade, "builtin")
    return replace(made, **fields)


def test_replies_come_back_as_they_were_stored(tmp_path):
    hostile = 'a\u2028b\x85"}\n{"c": \x1b[31m \U0001f600'
    lines = [line(reply=hostile, kl=(0.5, 32)), line(when="before", prompt=hostile, grade="partly")]
    (tmp_path / FILE).write_text(to_text(lines), encoding="utf-8")
    assert read_transcripts(tmp_path) == lines


@pytest.mark.parametrize(
    "row",
    ["", "no json", "{}", "[1]", "[" * 100_000, json.dumps({"grade": "fine", "when": "after"}),
     to_text([line(reply=5)]).strip(), to_text([line(prompt=None)]).strip(),
     to_text([line(tokens=("a",))]).strip()],
)  # fmt: skip
def test_a_line_that_is_no_reply_is_named(tmp_path, row):
    (tmp_path / FILE).write_text(to_text([line()]) + row + "\nx\n", encoding="utf-8")
    with pytest.raises(UnrefuseError, match=r"transcripts\.jsonl:2"):
        read_transcripts(tmp_path)


def test_a_line_of_an_earlier_version_is_read(tmp_path):
    row = json.loads(to_text([line(source="p.txt")]))
    del row["source"]
    (tmp_path / FILE).write_text(json.dumps(row))
    assert read_transcripts(tmp_path) == [line()]


def test_a_folder_without_replies_is_told(tmp_path):
    with pytest.raises(UnrefuseError, match="cannot read"):
        read_transcripts(tmp_path)


def test_the_detector_grades_a_stored_reply():
    assert detected(line(reply="I'm sorry, but I can't help with that.")) == "refused"
    assert detected(line(reply=" ", tokens=())) == "broken"
    assert detected(line()) == "answered"


def test_two_runs_are_compared_prompt_by_prompt():
    names = [f"p{i}" for i in range(12)]
    first = [line(name, "refused") for name in names]
    second = [line(name, "answered" if i < 6 else "refused") for i, name in enumerate(names)]
    second[11] = line("p11", "partly")
    others = [line("x", set="target"), line("p0", when="before"), line("only here", set="baseline")]
    found = compare([*first, *others], [*reversed(second), others[0]])
    assert found.n == {"keep": 12, "target": 1}
    assert (found.lost, found.gained) == ({"keep": 7, "target": 0}, {"keep": 0, "target": 0})
    assert found.p["keep"] == pytest.approx(2 / 2**7)
    assert found.p["target"] == 1
    assert [(c.prompt, c.first, c.second) for c in found.changed] == [
        *((f"p{i}", "refused", "answered") for i in range(6)),
        ("p11", "refused", "partly"),
    ]
    assert found.missing == 1
    with pytest.raises(UnrefuseError, match="no prompt in common"):
        compare(first, others)

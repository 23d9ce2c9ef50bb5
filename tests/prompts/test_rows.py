"""What a prompt file may hold, and the one line that names what is wrong with it."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrefuse.errors import UnrefuseError
from unrefuse.prompts.pairs import _pair
from unrefuse.prompts.rows import FILE_TYPES, file_rows
from unrefuse.prompts.sets import read_set

# Characters at which `str.splitlines` cuts, and a tab: none of them ends a line.
WITHIN = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\t"


def texts(tmp_path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return [(p.line, p.text) for p in read_set(str(tmp_path / name), "target")]


@pytest.mark.parametrize("char", WITHIN)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_a_line_feed_ends_a_line(tmp_path, char, ending):
    whole = f"one{char}two"
    wanted = [(1, whole), (2, "three")]
    assert texts(tmp_path, "p.txt", f"{whole}{ending}three{ending}") == wanted
    if char > "\x1f":  # JSON has the others as escapes alone
        rows = (json.dumps({"prompt": t}, ensure_ascii=False) for t in (whole, "three"))
        assert texts(tmp_path, "p.jsonl", ending.join(rows)) == wanted
    escaped = (json.dumps({"prompt": t}) for t in (whole, "three"))
    assert texts(tmp_path, "q.jsonl", ending.join(escaped)) == wanted
    csv = f'prompt,topic{ending}"{whole}",t{ending}three,t'
    assert texts(tmp_path, "p.csv", csv) == [(2, whole), (3, "three")]


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("p.txt", "one\rtwo\r", [(1, "one"), (2, "two")]),  # of an old Mac
        ("p.txt", "one\r2\ntwo", [(1, "one\r2"), (2, "two")]),
        ("p.txt", "\ufeffone\n \n\n", [(1, "one")]),
        ("P.TXT", "one", [(1, "one")]),
        ("p.jsonl", '\ufeff{"prompt": "one"}\n\n \n', [(1, "one")]),
        ("p.jsonl", '"one"\n"two"', [(1, "one"), (2, "two")]),
        ("p.jsonl", '{"prompt": "\\ud83d\\ude00 \\u0000"}', [(1, "😀 \0")]),
        ("p.json", '[{"prompt": "one, [two]"},\n\n "three" , {\n"prompt": "four"}]',
         [(1, "one, [two]"), (3, "three"), (3, "four")]),
        ("p.json", '{"prompt": "one"}\n{"prompt": "two"}\n', [(1, "one"), (2, "two")]),
        ("p.csv", "\ufeffprompt,topic\r\none,t\r\n", [(2, "one")]),
        ("p.csv", '\n"prompt"\n"a, ""b"",\nc"\n\nd\n', [(3, 'a, "b",\nc'), (6, "d")]),
        ("p.csv", " prompt , topic\none,t", [(2, "one")]),
        ("p.csv", ",prompt,\n0,one,\n1,two", [(2, "one"), (3, "two")]),
        ("p.csv", "prompt\none\rtwo\r", [(2, "one"), (3, "two")]),
        ("p.csv", 'prompt\nHow do I "kill" a process?', [(2, 'How do I "kill" a process?')]),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path, name, data, wanted):
    assert texts(tmp_path, name, data) == wanted


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json", "p.csv"])
def test_a_prompt_of_a_megabyte(tmp_path, name):
    long = "why, " * 200_000 + "oh"
    data = {
        ".txt": f"{long}\nend",
        ".jsonl": f'{{"prompt": "{long}"}}\n{{"prompt": "end"}}',
        ".json": f'[{{"prompt": "{long}"}},\n{{"prompt": "end"}}]',
        ".csv": f'prompt\n"{long}"\nend',
    }[(tmp_path / name).suffix]
    assert [text for _, text in texts(tmp_path, name, data)] == [long, "end"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"}\n', ":2: the line is empty"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', ":2: not JSON: .* at column 12"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', ":1: not JSON: the key 'prompt'"),
        ("p.jsonl", '{"prompt": "a"} {"prompt": "b"}', ":1: not JSON: Extra data"),
        ("p.jsonl", '{"prompt": "a"}\n' + "[" * 100_000, ":2: not JSON: nested too deeply"),
        ("p.jsonl", '{"prompt": 5}\n', ":1: column 'prompt' holds .* not text"),
        ("p.jsonl", '{"prompt": NaN}\n', ":1: column 'prompt' holds .* not text"),
        ("p.jsonl", '{"prompt": null}\n', ":1: column 'prompt' holds .* not text"),
        ("p.jsonl", '{"prompt": {"text": "a"}}\n', ":1: column 'prompt' holds .* not text"),
        ("p.jsonl", '["a"]\n', ":1: no column"),
        ("p.jsonl", '{"\\u001b[31m": "a"}\n', r":1: no column 'prompt' \(found: \\x1b\[31m\)"),
        ("p.jsonl", '{"prompt": "a", "set": "bad"}\n', ":1: set 'bad'"),
        ("p.jsonl", '{"prompt": "a", "split": "dev"}\n', ":1: split 'dev'"),
        ("p.jsonl", '"a"\n{"prompt": "cut \\ud83d here"}', ":2: half a character.*in 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "topic": "\\udc00"}', ":1: half a character.*in 'topic'"),
        ("p.json", '[{"prompt": "a"},\n{"prompt": "\\ud83d"}]', ":2: half a character"),
        ("p.json", '[{"prompt": "a"},\n{"prompt": }]', ":2: not JSON"),
        ("p.json", '[{"prompt": "a"},\n5]', ":2: no column"),
        ("p.txt", "one\ncaf\u00e9\n".encode("latin-1"), r":2: not UTF-8 text \(byte 0xe9\)"),
        ("p.txt", b"one\n\xed\xa0\xbd\n", ":2: not UTF-8"),
        ("p.txt", "one\n".encode("utf-16"), ":1: not UTF-8 text .*looks like UTF-16"),
        ("p.csv", "prompt\none\n".encode("utf-16-le"), ":1: not UTF-8 text .*UTF-16"),
        ("p.txt", b"one\ntw\0o\n", ":2: not UTF-8 text .a zero byte"),
        ("p.txt", b"\0" * 5000, r":1: not UTF-8 text .a zero byte\): save"),
        ("p.txt", b"\x1f\x8b\x08\0\0\0 and so on, which gzip wrote", r"byte 0x8b\): save it"),
        ("p.csv", 'prompt\none\n"a\nb\n', ":3: not CSV: unexpected end of data"),
        ("p.csv", 'prompt,topic\n"a" b,t\n', ":2: not CSV"),
        ("p.csv", "prompt\nWhy, oh why?\n", ":2: 2 cells under a header of 1"),
        ("p.csv", 'prompt,topic\n"a\nb",t\nc,d,e\n', ":4: 3 cells under a header of 2"),
        ("p.csv", "prompt,topic\none,t,\n", ":2: 3 cells"),
        ("p.csv", "prompt,prompt\na,b\n", ":1: the column 'prompt' appears twice"),
        ("p.csv", "topic,prompt\nx\n", ":2: column 'prompt' holds .* not text"),
        ("p.csv", 'prompt;topic\n"a, b";c\n', ":1: ';' separates the columns"),
        ("p.csv", "prompt\ttopic\na, b\tc\n", r":1: '\\t' separates the columns"),
        ("p.csv", ",\na,b\n", ":2: no column 'prompt'"),
        ("p.csv", "prompt\n", "no target prompts"),
        ("p.csv", "", "no target prompts"),
        ("p.json", "", "no target prompts"),
        ("p.json", "[]", "no target prompts"),
        ("p.txt", " \n\n", "no target prompts"),
        ("p.parquet", b"not parquet", "cannot read"),
        ("p.docx", "x", "must end in"),
        ("noext", "x", "must end in"),
    ],
)
def test_bad_files(tmp_path, name, data, says):
    with pytest.raises(UnrefuseError, match=says) as caught:
        texts(tmp_path, name, data)
    assert name in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_date_that_python_cannot_hold(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"prompt": ["one"], "made": pa.array([2**62], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UnrefuseError, match=r"cannot read .*date value out of range"):
        list(file_rows(tmp_path / "p.parquet"))


def test_a_pair_with_half_a_character_is_named():
    with pytest.raises(UnrefuseError, match=r"p\.jsonl:7: half a character.*in 'harmful'"):
        _pair({"harmless": "a", "harmful": "\ud83d"}, "p.jsonl", 7, "id")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), kind=st.sampled_from(FILE_TYPES))
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, data, kind):
    file = tmp_path_factory.getbasetemp() / f"any{kind}"
    file.write_bytes(data)
    told, rows = "", []
    try:
        rows = list(file_rows(file))
    except UnrefuseError as error:
        told = str(error)
    assert "\n" not in told
    assert all(line >= 1 for line, _ in rows)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n")), min_size=1),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_was_written_is_read(tmp_path_factory, written, ending):
    kept = [text for text in written if text.strip()]
    folder = tmp_path_factory.getbasetemp()
    (folder / "w.txt").write_bytes("".join(text + ending for text in ["x", *kept]).encode())
    assert [row for _, row in file_rows(folder / "w.txt")] == ["x", *kept]
    rows = (json.dumps({"prompt": text}, ensure_ascii=False) + ending for text in written)
    (folder / "w.jsonl").write_bytes("".join(rows).encode())
    assert [row["prompt"] for _, row in file_rows(folder / "w.jsonl")] == written


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_what_is_no_file_is_told_and_not_waited_for(tmp_path, kind):
    (tmp_path / f"folder{kind}").mkdir()
    os.mkfifo(tmp_path / f"fifo{kind}")
    (tmp_path / f"zero{kind}").symlink_to("/dev/zero")  # has no end
    for name in ("folder", "fifo", "zero"):
        with pytest.raises(UnrefuseError, match=f"{name}{kind}: it is a folder or a device"):
            texts(tmp_path, f"{name}{kind}", None)
    with pytest.raises(UnrefuseError, match="cannot read x"):
        read_set("x" * 300 + kind, "target")


def test_a_file_larger_than_the_memory_is_told(tmp_path, monkeypatch):
    def read(file):
        raise MemoryError

    monkeypatch.setattr("pathlib.Path.read_bytes", read)  # a real one might fill the memory
    with pytest.raises(UnrefuseError, match="it does not fit in memory"):
        texts(tmp_path, "p.txt", "x")

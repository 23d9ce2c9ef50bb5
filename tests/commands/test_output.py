"""What is printed never ends a run: on terminals without UTF-8, full disks, and gone readers."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import talker
from tests.results import result
from unrefuse.commands import edit, output
from unrefuse.errors import UnrefuseError
from unrefuse.jsontext import json_text
from unrefuse.progress import stderr

COMMAND = (sys.executable, "-c", "from unrefuse.cli import main; main()")
OLD = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
ODD = "é → 日本語 😀 \udcff [/bold] :smile:"


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unrefuse(*words, env, **options):
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        env={**os.environ, **env},
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.fixture
def prompt_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{i} {ODD.replace(chr(0xDCFF), '')}"} for i in range(1500)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("terminal", OLD)
def test_any_terminal_will_do(terminal, prompt_file):
    process = unrefuse("prompts", "show", prompt_file, env=OLD[terminal])
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"-> \\u65e5" in out
    process = unrefuse("prompts", "show", prompt_file, "--json", env=OLD[terminal])
    out, _ = process.communicate()
    assert process.returncode == 0
    shown = json.loads(out.decode("ascii"))["prompts"]
    assert shown[1]["text"].startswith("1 é → 日本語 😀")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_finished_edit_is_told_in_any_encoding(tmp_path, monkeypatch, encoding, as_json):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    output.adapt_streams()
    edit._report(result(tmp_path / ODD, removal=0.8, text=ODD), f"in {ODD}", as_json)
    told = stream.buffer.getvalue().decode(encoding)
    if as_json:
        assert json.loads(told)["out"] == str(tmp_path / ODD)
    else:
        assert "[/bold] :smile:" in told
        assert ("→" if encoding == "utf-8" else "->") in told
        assert "\\udcff" in told


def test_a_reader_that_has_seen_enough_is_no_failure(prompt_file):
    process = unrefuse("prompts", "show", prompt_file, env={})
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_chat_into_a_full_disk_is_one_line(tmp_path):
    model = talker.build(tmp_path / "m")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "chat", str(model)],
            input="q1 B\n",
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "unrefuse: cannot print: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_in_one_line(prompt_file):
    with Path("/dev/full").open("wb") as full:
        for words in (("prompts", "show", prompt_file), ("kernel",), ("kernel", "--json")):
            process = unrefuse(*words, env={}, stdout=full)
            _, err = process.communicate()
            assert process.returncode == 2
            assert err == b"unrefuse: cannot print: No space left on device\n"


def test_a_log_that_cannot_be_written_ends_no_run(monkeypatch):
    monkeypatch.setattr(stderr, "_file", Full())
    stderr.print("a line")
    monkeypatch.setattr(stderr, "_file", io.StringIO())
    stderr.print("another")
    assert stderr.file.getvalue() == "a line\nanother\n"


def test_lines_on_stderr_are_no_markup_and_are_not_cut(monkeypatch):
    monkeypatch.setattr(stderr, "_file", io.StringIO())
    line = f"[/red] {'word ' * 100}:smile:"
    stderr.print(line)
    assert stderr.file.getvalue() == f"{line}\n"


def test_json_is_json_and_says_what_is_not_finite():
    value = {"a": [1.0, float("nan")], "b": {"c": float("-inf")}, "d": "\ud800é"}
    for ascii_only in (True, False):
        text = json_text(value, ascii_only=ascii_only)
        read = json.loads(text, parse_constant=pytest.fail)
        assert read == {
            "a": [1.0, None], "b": {"c": None}, "d": "\ud800é", "not_finite": ["a.1", "b.c"]
        }  # fmt: skip
        text.encode("ascii" if ascii_only else "utf-8")
    assert json.loads(json_text({"a": 0.1, "b": (1, 2)})) == {"a": 0.1, "b": [1, 2]}
    assert json_text([float("inf")]) == "[null]"


def test_printing_closed_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    output.adapt_streams()
    output.print_out("x")
    output.print_err("x")
    output.print_json({"x": 1})
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(UnrefuseError, match="cannot print: No space"):
        output.print_out("x")


def test_what_acts_on_a_terminal_is_shown_as_its_escape(tmp_path, monkeypatch, capsys):
    name = "a\x1b]0;x\x07b\nc\u202e\u65e5"
    output.print_err(f"unrefuse: {name}")
    stderr.print(name)
    shown = "a\\x1b]0;x\\x07b"
    told, *lines = capsys.readouterr().err.splitlines()
    assert told == f"unrefuse: {shown}\\nc\\u202e\u65e5"
    assert lines == [shown, "c\\u202e\u65e5"]


def test_without_a_stderr_nothing_goes_to_stdout_in_its_place(tmp_path):
    done = unrefuse("doctor", tmp_path / "none", "--json", env={}, preexec_fn=lambda: os.close(2))
    out, _ = done.communicate(timeout=60)
    assert done.returncode == 2
    assert json.loads(out)["faults"]
    done = unrefuse("diff", tmp_path, tmp_path, env={}, preexec_fn=lambda: os.close(2))
    assert (done.communicate(timeout=60)[0], done.returncode) == (b"", 2)

"""`unrefuse chat` at a terminal, in a pipe, and for one reply."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import unicodedata

import pytest

from tests import pico, talker
from tests.edits.plans import save_measured, selective
from tests.jobs.test_chat import ANSWER, REFUSAL, build
from unrefuse import cli

COMMAND = (sys.executable, "-c", "from unrefuse.cli import main; main()", "chat")
# Makes stdin the terminal that Ctrl-C comes from, and runs the rest of the words there. A suite in
# the background has Ctrl-C ignored, and the command would inherit that.
TAKES = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return build(tmp_path_factory.mktemp("chat"))


def run(monkeypatch, capsys, *words):
    """In this process: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["unrefuse", "chat", *map(str, words), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def typed(monkeypatch, capsys, text, *words):
    """The same, with `text` on stdin."""
    read, write = os.pipe()
    with os.fdopen(write, "wb") as end:
        end.write(text if isinstance(text, bytes) else text.encode())
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        return run(monkeypatch, capsys, *words)


class Terminal:
    """The command at a terminal of 120 columns."""

    def __init__(self, *words):
        self.fd, end = pty.openpty()
        # Not pty.fork: a child of a process with threads may hang before it is another program.
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKES, *COMMAND, *map(str, words), "--device", "cpu"],
            env={**os.environ, "COLUMNS": "120", "LINES": "30", "TERM": "xterm-256color"},
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)

    def read(self, wanted, seconds=300):
        """Waits for what matches; gives all that came since the last time."""
        found, end = "", time.monotonic() + seconds
        while not re.search(wanted, found, re.DOTALL):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f"no {wanted!r} in {found!r}")
            try:
                found += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {wanted!r}: {found!r}") from None
        return found

    def write(self, text):
        os.write(self.fd, text.encode())

    def interrupt(self, wanted):
        """Ctrl-C at a prompt, until it is answered. Between the moment when Python's readline has
        shown the prompt and that when it waits for a key, it does not see a signal."""
        for _ in range(60):
            self.write("\x03")
            if select.select([self.fd], [], [], 5)[0]:
                break
        self.read(wanted)

    def end(self):
        """The exit status."""
        while True:  # what is written has to be read
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        return self.process.wait()


def test_one_reply_is_all_that_is_on_stdout(monkeypatch, capsys, places):
    original, edited = places["original"], places["edited"]
    for words, out in [
        ([original, "-p", "q1 T"], f"{REFUSAL}\n"),
        ([edited, "-p", "q1 T"], f"{ANSWER}\n"),
        ([original, "--plan", places["run"], "-p", "q1 T"], f"{ANSWER}\n"),
    ]:
        assert run(monkeypatch, capsys, *words) == (0, out, "")
    code, out, err = run(monkeypatch, capsys, original, "-p", "q1 B", "--reply-tokens", 8)
    assert (code, out, err) == (0, f"{ANSWER}\n", "")
    code, out, err = run(monkeypatch, capsys, original, edited, "-p", "q1 K", "--reply-tokens", 8)
    assert code == 0
    assert out.split("\n") == [f"{original}:"[:60], REFUSAL, f"{edited}:"[:60], REFUSAL, ""]


def test_a_reply_that_is_cut_or_is_all_thoughts_says_so(monkeypatch, capsys, tmp_path):
    folder = talker.build(tmp_path, thoughts=12)
    code, out, err = run(monkeypatch, capsys, folder, "-p", "q1 T", "--thinking-tokens", 8)
    assert (code, out.strip()) == (1, "")
    assert "no reply; raise --thinking-tokens" in err
    code, out, _ = run(monkeypatch, capsys, folder, "-p", "q1 T")
    assert (code, out) == (0, f"{REFUSAL}\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["/no/such/model"], "no such folder"),
        (["MODEL", "--plan", "/no/such/run"], "there is no plan in"),
        (["MODEL", "MODEL", "--plan", "/no/such/run"], "leave out B"),
        (["MODEL", "--reply-tokens", "4"], "reply_tokens"),
        (["MODEL", "-p", "q1 \udcff"], "fails"),
        (["MODEL", "-p", ""], "prompt"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, places, words, says):
    words = [places["original"] if word == "MODEL" else word for word in words]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_pipe_has_replies_on_stdout_and_the_rest_on_stderr(
    monkeypatch,
    capsys,
    places,
    tmp_path,
):
    lines = [
        "q1 T",
        "",
        "/strength 0",
        "q2 T",
        "/strength",
        "/strength much",
        "/strength 7",
        "/nonsense \x1b[31m",
        "/save",
        f"/save {tmp_path / 'a.jsonl'}",
        "/reset",
        f"/save {tmp_path / 'b.jsonl'}",
        " /strength B",
        "/peak 0.5",
        "/help",
        "/quit",
        "q1 B",
    ]
    code, out, err = typed(monkeypatch, capsys, "\n".join(lines), places["edited"])
    assert code == 0
    replies = (REFUSAL, ANSWER, REFUSAL, REFUSAL, ANSWER, ANSWER)
    titles = ("original:", "edited:") * 3
    assert out.split("\n") == [w for pair in zip(titles, replies, strict=True) for w in pair] + [""]
    assert "\x1b" not in out + err
    for told in [
        "strength 0 (not measured)\n",
        "/strength takes a number, not much",
        "strength must be between 0 and 2",
        "no command /nonsense: /help lists the commands",
        "/save needs the name of a new file: /save FILE",
        f"saved: {tmp_path / 'a.jsonl'}",
        "a new conversation begins",
        "the conversation is empty",
        "strength 0, peak 0.5, width 0.5 (not measured)\n",
        "/width 0.15",
    ]:
        assert told in err
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "b.jsonl").exists()


def test_a_model_without_an_edit_has_no_dials(monkeypatch, capsys, places):
    code, out, err = typed(monkeypatch, capsys, "/peak 0.5\nq1 B\n", places["original"])
    assert (code, out) == (0, f"{ANSWER}\n")
    assert "/peak works on an edit: start `unrefuse chat EDITED`" in err
    code, out, err = typed(monkeypatch, capsys, b"q1 \xff\n", places["original"])
    assert (code, out) == (2, "")
    assert "not UTF-8" in err


def test_a_conversation_that_is_too_long_goes_on_after_reset(
    monkeypatch,
    capsys,
    places,
):
    long = " ".join(f"q{i}" for i in range(300)) + " B"
    code, out, err = typed(
        monkeypatch, capsys, f"{long}\n{long}\n/reset\nq1 B\n", places["original"]
    )
    assert (code, out.splitlines()) == (0, [ANSWER, "", ANSWER])
    assert "are more than the model reads (512)" in err


@pytest.mark.parametrize("columns", [120, 60])
def test_two_replies_stand_side_by_side_where_there_is_room(monkeypatch, capsys, places, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    original, edited = places["original"], places["edited"]
    code, out, _ = run(monkeypatch, capsys, original, edited, "-p", "q1 B")
    beside = [line for line in out.splitlines() if line.count(ANSWER) == 2]
    assert (code, bool(beside)) == (0, columns == 120)
    assert out.count(ANSWER) >= 2


def test_at_a_terminal(tmp_path):
    """A model of random weights, which says any byte and comes to no end, and an edit of it."""
    model = pico.save(tmp_path / "m")
    save_measured(selective(pico.network()), tmp_path / "run" / "plan.safetensors", model)
    terminal = Terminal(model, "--plan", tmp_path / "run")
    terminal.read("Ctrl-D ends.*> ")
    terminal.write("/strength 2\n")
    terminal.read(r"strength 2 \(not measured\)\r\n.*> ")
    terminal.write("Hi\n")
    terminal.read(r"original.*edited.*\\x")
    terminal.write("\x03")
    shown = terminal.read(r"\(stopped\).*> ")
    # The end of the table when the reply is stopped: what the model said, and nothing that acts.
    said = shown.partition("(stopped)")[0].rpartition("\x1b")[2]
    acting = {c for c in said if unicodedata.category(c) in ("Cc", "Cf")} - set("\r\n\t")
    assert not acting
    assert re.search(r"\\x[0-9a-f]{2}", said)
    terminal.interrupt("Ctrl-D ends.*> ")
    terminal.write(f"/save {tmp_path / 'a.jsonl'}\n\x04")
    assert terminal.end() == 0
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    first, second = json.loads(line)["replies"]
    assert (first["edit"], second["edit"]) == (None, "strength 2")
    assert not (first["whole"] and second["whole"])
    assert first["said"] or second["said"]

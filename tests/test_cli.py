"""The command line as a whole: its speed, its help, its colours, completion, and its mistakes."""

import errno
import json
import os
import pty
import re
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import pico
from tests.command import unrefuse

UNREFUSE = str(Path(sys.executable).parent / "unrefuse")


def best_time(*command):
    """Seconds of a processor, which other work on the machine does not change."""
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_import_and_help_are_quick():
    empty = best_time(sys.executable, "-c", "pass")
    assert best_time(sys.executable, "-c", "import unrefuse") - empty < 0.2
    assert best_time(UNREFUSE, "--help") < 0.5


def test_the_help_of_all_commands_reads_no_configuration():
    code = (
        "import sys; from unrefuse.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    )
    code += "\nprint({'pydantic', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edit " in done.stdout
    assert done.stdout.endswith("set()\n")


def test_a_check_of_files_loads_no_torch(tmp_path):
    code = (
        "import sys; from unrefuse.cli import main\n"
        f"try: main(['verify', {str(tmp_path)!r}])\nexcept SystemExit as end: print(end.code)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\nset()\n"
    assert "SHA256SUMS" in done.stderr


def test_the_version():
    assert unrefuse("--version").stdout == f"unrefuse {version('unrefuse')}\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_terminals_and_for_those_who_want_them(no_color):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [UNREFUSE, "--help"],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color},
    )
    os.close(theirs)
    shown = b""
    while part := _read(ours):
        shown += part
    assert process.wait() == 0
    assert b"edit" in shown
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-9]m", shown)) is not bool(no_color)
    assert "\x1b" not in unrefuse("--help").stdout


def _read(terminal):
    try:
        return os.read(terminal, 1024)
    except OSError:  # it was closed at the other end
        return b""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("unrefuse ev", "evaluate"), ("unrefuse edit --retention-f", "--retention-floor"),
     ("unrefuse edit demo --method se", "selective")],
)  # fmt: skip
def test_a_shell_completes_commands_options_and_their_values(monkeypatch, typed, offered):
    monkeypatch.setenv("_UNREFUSE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert offered in unrefuse().stdout.split()


def test_help_alone_is_for_those_who_type_nothing():
    done = unrefuse()
    assert done.returncode == 2
    assert "edit" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["edit", "--nonsense"], "(see `unrefuse edit --help`)"),
        (["edi"], "Did you mean 'edit'?"),
        (["kernel", "--profile", "brod"], "'brod' is not one of 'default', 'early_focus'"),
        (["kernel", "--layers", "many"], "--layers"),
        (["apply"], "Missing argument 'RUN'"),
        (["edit"], "which model? type `unrefuse edit MODEL --out DIR`"),
        (["apply", "run"], "which model? type `unrefuse apply RUN MODEL --out DIR`"),
        (["analyze"], "which model? type `unrefuse analyze MODEL`"),
        (["edit", "demo"], "no output folder is named: add --out DIR"),
        (["evaluate"], "name one of MODEL, --transcripts DIR and --compare DIR1 DIR2"),
    ],
)
def test_a_mistake_in_usage_is_one_line_that_says_what_to_type(words, says):
    done = unrefuse(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("unrefuse: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [("doctor", "NAME"), ("apply", "NAME", "x", "--out", "y"), ("verify", "NAME"),
     ("publish", "NAME", "--repo", "a/b"), ("reproduce", "NAME"), ("diagnose", "NAME"),
     ("chat", "NAME", "-p", "x"), ("kernel", "--kernel", "NAME", "--layers", 3)],
)  # fmt: skip
def test_a_name_that_is_too_long_is_one_line(words):
    done = unrefuse(*("a" * 5000 if word == "NAME" else word for word in words))
    assert done.returncode == 2
    assert "File name too long" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_place_that_may_not_be_read_is_one_line(monkeypatch):
    def denied(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "a/b")

    monkeypatch.setattr("unrefuse.report.seal.find_faults", denied)
    done = unrefuse("verify", "a")
    assert (done.returncode, done.stderr) == (2, "unrefuse: Permission denied: a/b\n")


def test_kernel_json_is_one_object():
    done = unrefuse("kernel", "--layers", 32, "--peak", 0.6, "--width", 0.15, "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["weights"]) == 32


def test_kernel_pictures(tmp_path):
    for name in ("k.png", "k.svg"):
        assert unrefuse("kernel", "--compare", "broad", "--plot", tmp_path / name).returncode == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert unrefuse("kernel", "--plot", tmp_path / "k.txt").returncode == 2


def test_shipped_prompts_have_no_problems(tmp_path):
    assert unrefuse("prompts", "check").returncode == 0
    assert "planted" in unrefuse("prompts", "list").stdout
    bad = tmp_path / "bad.txt"
    bad.write_text("one\n\none\n")
    done = unrefuse("prompts", "check", "--target", bad)
    assert done.returncode == 2
    assert "bad.txt:2" in done.stdout
    assert "bad.txt:3" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["MODEL", "--out", "IN_USE"], "not an empty folder"),
        (["MODEL", "--out", "OUT", "--peak", "1.5"], "peak"),
        (["MODEL", "--out", "OUT", "--width", "0"], "width"),
        (["MODEL", "--out", "OUT", "--retention-floor", "0"], "retention_floor"),
        (["MODEL", "--out", "OUT", "--pairs", "PAIRS"], "pairs.csv:3: a pair needs"),
        (["MODEL", "--out", "OUT", "--target", "CUT"], "cut.csv:2: 2 cells"),
        (["MODEL", "--out", "OUT", "--import", "IMPORT"], "cut.csv:2: 2 cells"),
        (["/no/such/folder", "--out", "OUT"], "no such folder"),
        (["MODEL", "--out", "OUT", "--limit", "16", "--reply-tokens", "8"], "of 100 or more"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, words, says):
    places = {"MODEL": pico.save(tmp_path / "m"), "OUT": tmp_path / "out", "IN_USE": tmp_path,
              "PAIRS": tmp_path / "m" / "pairs.csv", "CUT": tmp_path / "m" / "cut.csv",
              "IMPORT": f"do-not-answer:{tmp_path / 'm' / 'cut.csv'}"}  # fmt: skip
    places["CUT"].write_text("prompt\nWhy, oh why?\n")
    places["PAIRS"].write_text("harmless,harmful\na,b\nc,\n")
    done = unrefuse("edit", *[places.get(word, word) for word in words], "--json")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tune", "demo", "--resume"), "no run in"),
        (("tune", "demo", "--tune", "gradient"), "'grid', 'optuna'"),
        (("tune", "demo", "--method", "nonsense"), "'selective', 'ablate'"),
        (("edit", "demo", "--preserve-norm"), "needs the method ablate"),
        (("edit", "demo", "--tune", "optuna", "--strength", 1), "leave out one of tune and"),
        (("edit", "demo", "--resume"), "no run in"),
    ],
)
def test_a_mistake_in_tuning_is_told_in_one_line_before_a_model_loads(tmp_path, words, told):
    done = unrefuse(*words, "--out", tmp_path / "x")
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

"""The code in the docs runs, and its command lines are ones that the command line takes.

A block marked `python` runs here, on a tiny model in place of the demo. One marked `py` is parsed
alone. Lines of a block marked `shell`, or not marked, that begin with `unrefuse` are parsed.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests import talker
from tests.docs.pages import DOCS, NOTEBOOK, PAGES, READMES, blocks, commands, name, spans
from unrefuse.cli import app

GROUP = typer.main.get_command(app)
OF_ALL = (["COMMAND"], ["--version"], ["--help"])  # what can follow `unrefuse` beside a command
TINY = (
    '"talker", target="target.txt", baseline="baseline.txt", keep="keep.txt", limit=16, '
    'device="cpu"'
)
# Its code is about a run that is there already: that of README.
OF_A_RUN = DOCS / "report.md"


def tiny(code):
    """The code with a model in place of the demo on which it takes a second or two."""
    code = re.sub(r"trials=\d+", "trials=1", re.sub(r", limit=\d+", "", code))
    return code.replace('"demo"', TINY)


# Pages with the same code are one: a run takes seconds.
WITH_PYTHON = {
    tiny("\n".join(code)): page
    for page in (NOTEBOOK, *PAGES[::-1])
    if (code := blocks(page, "python"))
}


def run_python(page, changed=str):
    """The names that the blocks of a page leave, run one after another."""
    names = {}
    for block in blocks(page, "python"):
        exec(compile(changed(block), name(page), "exec"), names)  # noqa: S102
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    talker.build(tmp_path / "talker")
    talker.write_prompts(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON.values(), ids=name)
def test_python_runs(page, folder):
    if page == OF_A_RUN:
        run_python(READMES[0], tiny)
        (folder / "edited" / "report.html").unlink()
    names = run_python(page, tiny)
    if page == OF_A_RUN:
        assert (folder / "edited" / "report.html").is_file()
    if page == NOTEBOOK:
        assert names["result"].saved
        assert (folder / "edited" / "run.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_that_is_not_run_can_be_parsed(page):
    for block in blocks(page, "py"):
        ast.parse(block)


def command_of(words):
    """The command that the first words name, and the words that are left for it."""
    found, rest = GROUP, list(words)
    while hasattr(found, "commands") and rest and rest[0] in found.commands:
        found = found.commands[rest.pop(0)]
    return found, rest


def complaint(words):
    """What the command line says against these words, which it parses and does not run."""
    command, rest = command_of(words)
    if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        return f"no command {rest[0]}"
    try:
        command.make_context("unrefuse", rest)
    except (SystemExit, typer.Exit):  # it was done: a version or a completion was shown
        return None
    except Exception as error:  # typer ships a click of its own
        return None if "--help" in rest else str(error) or type(error).__name__
    return None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_command_line_is_one_that_unrefuse_takes(page):
    found = {" ".join(words): complaint(words) for words in commands(page)}
    assert not {line: said for line, said in found.items() if said}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_part_of_a_command_line_names_what_is_there(page):
    for words in spans(page):
        command, rest = command_of(words)
        assert command is not GROUP or rest[:1] in ([], *OF_ALL), words
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        given = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert given <= known | {"--help", "--version"}, f"unrefuse {' '.join(words)}"


def test_a_wrong_command_line_is_found():
    assert "--no-such-option" in complaint(["edit", "demo", "--no-such-option"])
    assert "Missing" in complaint(["revert", "EDITED", "--adapter", "DIR"])
    assert complaint(["no-such-command"])
    assert complaint(["prompts", "lists"])
    assert complaint(["edit", "demo", "--out", "DIR"]) is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_run_goes_as_its_page_says(tmp_path):
    unrefuse = Path(sys.executable).parent / "unrefuse"
    lines = commands(DOCS / "first-run.md")
    assert lines[0][:2] == ["edit", "demo"]
    for words in lines:
        subprocess.run([unrefuse, *words], cwd=tmp_path, check=True)
    for file in ("report.html", "README.md", "result.png", "run.json", "tuning/plan.safetensors",
                 "SHA256SUMS"):  # fmt: skip
        assert (tmp_path / "demo-output" / file).is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs_on_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_python(NOTEBOOK)["result"].saved

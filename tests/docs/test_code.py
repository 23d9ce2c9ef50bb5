"""The code in the docs runs, and its command lines are ones that the command line takes.

A block marked `python` runs here, on a tiny model in place of the demo. One marked `py` is parsed
alone. Lines of a block marked `shell`, or not marked, that begin with `unrefuse` are parsed.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from tests import talker
from tests.docs.pages import DOCS, NOTEBOOK, PAGES, blocks, commands, name, spans
from unrefuse.cli import app

GROUP = typer.main.get_command(app)
TINY = (
    'model="talker", target="target.txt", baseline="baseline.txt", keep="keep.txt", limit=16, '
    'device="cpu"'
)
WITH_PYTHON = [page for page in (*PAGES, NOTEBOOK) if blocks(page, "python")]


def tiny(code):
    """The code with a model in place of the demo on which it takes a second or two."""
    code = re.sub(r", (limit|trials)=\d+", "", code)
    code = code.replace('tune="optuna"', 'tune="optuna", trials=1')
    return code.replace('model="demo"', TINY)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    talker.build(tmp_path / "talker")
    talker.write_prompts(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_runs(page, folder):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(tiny(block), name(page), "exec"), names)  # noqa: S102
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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_command_line_is_one_that_unrefuse_takes(page):
    for words in commands(page):
        command, rest = command_of(words)
        try:
            command.make_context("unrefuse", rest)
        except click.exceptions.Exit:
            assert "--help" in rest
        except click.exceptions.ClickException as error:
            pytest.fail(f"unrefuse {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_part_of_a_command_line_names_what_is_there(page):
    for words in spans(page):
        command, rest = command_of(words)
        assert command is not GROUP or rest[:1] in ([], ["COMMAND"], ["--version"]), words
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        given = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert given <= known | {"--help", "--version"}, f"unrefuse {' '.join(words)}"


def test_a_wrong_command_line_is_found():
    with pytest.raises(click.exceptions.ClickException):
        command_of(["edit"])[0].make_context("unrefuse", ["demo", "--no-such-option"])
    with pytest.raises(click.exceptions.ClickException):
        command_of(["revert"])[0].make_context("unrefuse", ["EDITED"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_run_goes_as_its_page_says(tmp_path):
    unrefuse = Path(sys.executable).parent / "unrefuse"
    lines = commands(DOCS / "first-run.md")
    assert lines[0][:2] == ["edit", "demo"]
    for words in lines:
        subprocess.run([unrefuse, *words], cwd=tmp_path, check=True)
    for file in ("README.md", "result.png", "run.json", "tuning/plan.safetensors", "SHA256SUMS"):
        assert (tmp_path / "demo-output" / file).is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs_on_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(NOTEBOOK, "python"):
        exec(compile(block, "notebook", "exec"), names)  # noqa: S102
    assert names["result"].saved

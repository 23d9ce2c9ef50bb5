"""Data flows from top to bottom: a file imports only from its own room and the rooms above it."""

import ast
from pathlib import Path

import pytest

import unrefuse

ROOT = Path(unrefuse.__file__).parent
ROOMS = (
    *("errors", "jsontext", "textfile", "progress", "config", "kernel"),
    *("prompts", "detector", "models", "engine", "edits", "metrics", "search", "report", "jobs"),
    *("api", "app", "commands", "cli"),
)
FILES = [f for f in sorted(ROOT.rglob("*.py")) if f != ROOT / "__init__.py"]


def room(parts):
    return ROOMS.index(parts[0].removesuffix(".py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_come_from_above(file):
    own = room(file.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unrefuse."):
            assert room(node.module.split(".")[1:]) <= own, f"{file.name} imports {node.module}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_is_one_room(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", unrefuse.__all__)
def test_public_names_exist_and_are_documented(name):
    assert getattr(unrefuse, name).__doc__
    assert name in dir(unrefuse)
    assert f"`{name}" in (ROOT.parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = unrefuse.nonsense

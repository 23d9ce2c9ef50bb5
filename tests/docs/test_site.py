"""The docs as a site: links, menu, recipes, pictures, and the build."""

import re
import sys
import tomllib
from subprocess import run

import pytest

from tests.docs.pages import DOCS, NOTEBOOK, PAGES, ROOT, name, tokens
from tools.docs import pictures
from unrefuse.config import load_config

RECIPES = sorted((DOCS / "recipes").glob("*.toml"))
MENU = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "LOG.md"], ids=name)
def test_links_within_the_repository_lead_somewhere(page):
    goals = [t.attrs.get("href") or t.attrs.get("src") for t in tokens(page) if t.attrs]
    for goal in filter(None, goals):
        if not re.match(r"[a-z]+:", goal):
            path, _, anchor = goal.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), goal
            if anchor and file.suffix == ".md":
                assert anchor in anchors(file), goal


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    found = set()
    for line in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        given = re.search(r"\{ #([\w-]+) \}$", line)
        text = re.sub(r"[^\w\s-]", "", line.lower().replace("`", "")).strip()
        found.add(given[1] if given else re.sub(r"\s", "-", text))
    return found


def test_every_page_is_in_the_menu_and_every_entry_is_a_page():
    entries = re.findall(r"^ *- [^#\n]*?([\w/.-]+\.md)$", MENU, re.MULTILINE)
    assert {name(DOCS / entry) for entry in entries} <= {name(page) for page in PAGES}
    waiting = re.findall(r"# - .* ([\w/.-]+\.md)$", MENU, re.MULTILINE)
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in {*entries, *waiting}


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_a_recipe_is_a_configuration_with_what_was_measured(file):
    recipe = tomllib.loads(file.read_text(encoding="utf-8"))
    assert load_config(file).model == recipe["config"]["model"]
    assert recipe["name"]
    for row in recipe["measured"]:
        assert row.keys() >= {"version", "machine", "minutes", "removal", "retention", "kl"}
        for figure in ("removal", "retention", "quality"):
            e = row[figure]
            assert e.get("low", 0) <= e["value"] <= e.get("high", 1)


def test_the_notebook_is_short():
    assert NOTEBOOK.read_text(encoding="utf-8").count('"cell_type": "code"') <= 8


@pytest.mark.slow
def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    pictures.draw(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in (DOCS / "img").glob("*.svg")}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path / "site"]
    done = run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    html = "".join(f.read_text(encoding="utf-8") for f in (tmp_path / "site").rglob("*.html"))
    loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]+)", html)
    loaded += re.findall(r"<link[^>]* href=\"(https?:[^\"]+)", html)
    assert not loaded
    assert "--out" in html  # the commands are documented

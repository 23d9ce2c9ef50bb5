"""The pages of the docs, and the blocks of code in them."""

import json
import re
import shlex
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "notebook.ipynb"
READMES = [ROOT / name for name in ("README.md", "README.ja.md", "CONTRIBUTING.md")]
PAGES = [*READMES, *sorted(DOCS.rglob("*.md"))]


def name(page):
    return str(page.relative_to(ROOT))


def tokens(page):
    found = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    return [*found, *(child for token in found for child in token.children or ())]


def blocks(page, language):
    """Blocks of code in one language; the cells of a notebook are Python."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [t.content for t in tokens(page) if t.type == "fence" and t.info.strip() == language]


def commands(page):
    """The lines of the page that run `unrefuse`, each as words; not those of Python."""
    fences = [t for t in tokens(page) if t.type == "fence" and t.info.strip() in ("", "shell")]
    lines = "\n".join(t.content for t in fences).replace("\\\n", " ").split("\n")
    return [words(line) for line in lines if line.startswith("unrefuse ")]


def spans(page):
    """The words of `unrefuse ...` within a sentence, which may be a part of a command."""
    inline = [t.content for t in tokens(page) if t.type == "code_inline"]
    return [words(text) for text in inline if text.startswith("unrefuse ")]


def words(line):
    """A line's words, without its comment, what follows a pipe, and brackets around options."""
    line = re.split(r"\s#|[|>]", line, maxsplit=1)[0].replace("[", "").replace("]", "")
    return [word for word in shlex.split(line)[1:] if word != "..."]

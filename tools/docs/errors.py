"""The error messages in `src`, and the texts that docs/errors.md explains.

    python -m tools.docs.errors

renews the texts of messages that were reworded, and lists messages that the page lacks and texts
that no message has any more. A field of a message is written `…`.
"""

import ast
import difflib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = ROOT / "src" / "unrefuse", ROOT / "docs" / "errors.md"
FIELD = "…"
# Reworded, and not another message: from this share of equal characters on.
ALIKE = 0.6
_TEXT = re.compile(r"^- ``(.+)``$", re.MULTILINE)


def messages(source: Path = SOURCE) -> dict[str, str]:
    """Each message of an error that a user sees, and the file that it is in.

    These are the texts of UnrefuseError and the classes made of it, the prefixes of `raised_as`,
    and the rules of the configuration. A message that only hands another one on (`…: …`) is left
    out.
    """
    classes = [node for nodes in _nodes(source).values() for node in nodes[ast.ClassDef]]
    errors = {"UnrefuseError"}
    for _ in range(3):  # classes of classes
        errors |= {c.name for c in classes if errors & {_name(base) for base in c.bases}}
    found = {}
    for file, nodes in _nodes(source).items():
        rules = {"ValueError"} if file.name == "config.py" else set()
        for call in nodes[ast.Call]:
            kind = _name(call.func)
            if kind in errors | rules | {"raised_as"} and call.args:
                for text in texts(call.args[0]):
                    text = f"{text}: {FIELD}" if kind == "raised_as" else text
                    if any(c.isalpha() for c in text):
                        found[text] = str(file.relative_to(source))
    return found


def fragments(source: Path = SOURCE) -> str:
    """All strings of the source, one a line: what a helper function adds to a message is here."""
    lines = []
    for nodes in _nodes(source).values():
        for node in (*nodes[ast.Constant], *nodes[ast.JoinedStr], *nodes[ast.BinOp]):
            lines += texts(node)
    return "\n".join(lines)


def texts(node: ast.expr) -> list[str]:
    """What an expression of strings can say, its fields as `…`."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [FIELD]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    if isinstance(node, ast.JoinedStr):
        parts = [texts(part) if isinstance(part, ast.Constant) else [FIELD] for part in node.values]
        return ["".join(chosen) for chosen in product(*parts)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in texts(node.left) for b in texts(node.right)]
    return [FIELD]


def explained(page: str) -> list[str]:
    """The texts that the page explains, in order."""
    return [text.strip() for text in _TEXT.findall(page)]


def stale(page: str, there: dict[str, str], said: str) -> list[str]:
    """Texts of the page that are no message, nor made of strings of the source."""
    return [
        text
        for text in explained(page)
        if text not in there
        and not all(part.strip() in said for part in text.split(FIELD) if len(part.strip()) > 3)
    ]


def renewed(page: str, there: dict[str, str], said: str) -> str:
    """The page with the texts of reworded messages renewed."""
    lacking = [text for text in there if text not in explained(page)]
    for old in stale(page, there, said):
        if near := difflib.get_close_matches(old, lacking, 1, ALIKE):
            page = page.replace(f"- ``{old}``\n", f"- ``{near[0]}``\n")
            lacking.remove(near[0])
    return page


@cache
def _nodes(source: Path) -> dict[Path, defaultdict[type, list[Any]]]:
    """The nodes of every file, by their kind."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        kinds: defaultdict[type, list[Any]] = defaultdict(list)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            kinds[type(node)].append(node)
        found[file] = kinds
    return found


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def _report() -> Iterator[str]:
    there, said = messages(), fragments()
    page = renewed(PAGE.read_text(encoding="utf-8"), there, said)
    PAGE.write_text(page, encoding="utf-8")
    known = set(explained(page))
    yield from (f"lacks: {text}  ({file})" for text, file in there.items() if text not in known)
    yield from (f"no such message: {text}" for text in stale(page, there, said))


if __name__ == "__main__":
    lines = list(_report())
    sys.exit("\n".join(lines) if lines else 0)

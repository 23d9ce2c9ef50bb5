"""What mkdocs puts into pages when it builds the site: the parts that are made from the code."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in the parts that a page names, each by a comment on a line of its own."""
    for name, make in (("cli", cli), ("api", api), ("recipes", recipes)):
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def cli() -> str:
    """Every command with its options, as typer documents them."""
    command = [sys.executable, "-m", "typer", "unrefuse.cli", "utils", "docs", "--name", "unrefuse"]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return page.split("\n", 1)[1]  # the page has a title


def api() -> str:
    """The public names, for mkdocstrings, in the order of the alphabet."""
    import unrefuse

    names = []
    for name in dir(unrefuse):
        found = getattr(unrefuse, name)
        module = getattr(found, "__module__", None) or "unrefuse"
        names.append(f"::: {module}.{getattr(found, '__qualname__', name)}")
    return "\n\n".join(names)


def recipes() -> str:
    """A table of what was measured with each recipe."""
    rows = ["| model | command | removal | retention | quality | KL | time |", "|---" * 7 + "|"]
    for file in sorted(RECIPES.glob("*.toml")):
        recipe = tomllib.loads(file.read_text(encoding="utf-8"))
        for row in recipe["measured"]:
            cells = [figure(row[name]) for name in ("removal", "retention", "quality")]
            cells.append(figure(row["kl"], ".3f"))
            command = f"`unrefuse edit --config docs/recipes/{file.name} --out DIR`"
            rows.append(
                f"| {recipe['name']} | {command} | {' | '.join(cells)} "
                f"| {row['minutes']} min, {row['machine']} |"
            )
    return "\n".join(rows)


def figure(measured: dict[str, Any], digits: str = ".2f") -> str:
    """A figure with its interval and its n, as far as they are known."""
    text, known = f"{measured['value']:{digits}}", list[str]()
    if "low" in measured:
        known.append(f"{measured['low']:{digits}} to {measured['high']:{digits}}")
    if "n" in measured:
        known.append(f"n {measured['n']}")
    return f"{text} ({', '.join(known)})" if known else text

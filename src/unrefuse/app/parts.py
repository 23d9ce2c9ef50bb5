"""Parts of the page as HTML: Jinja2 escapes whatever is put in."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from unrefuse.app.bench import Bench, Compared, Knobs
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.thinking import after_thinking

STYLE = Path(__file__).parent / "templates" / "page.css"
_parts: Any = (
    Environment(
        loader=PackageLoader("unrefuse.app"),
        autoescape=select_autoescape(default=True, default_for_string=True),
    )
    .get_template("parts.html.jinja")
    .module
)


def part(name: str, *given: Any) -> str:
    """The part of the page that the macro `name` makes. Half a character, as of a folder's name
    that is no text, has no form in a page."""
    return str(getattr(_parts, name)(*given)).encode(errors="replace").decode()


def layers(bench: Bench | None, knobs: Knobs) -> str:
    """The kernel that the sliders show, over what was measured by layer; or why there is none."""
    if bench is None:
        return ""
    try:
        weights = bench.kernel(knobs).weights
    except UnrefuseError as error:
        return part("notice", str(error))
    found = bench.analysis
    return part("layers", weights, found.strengths[""].effect, found.discrimination.auc)


def analysis(bench: Bench | None) -> str:
    """What `analyze` says, and the kernel that `edit` would take."""
    if bench is None:
        return ""
    found, weights = bench.analysis, bench.prepared.kernel.weights
    return part("analysis", found, weights, *found.suggest())


def said(title: str, reply: str | Reply) -> str:
    """A reply so far, with its thoughts folded and, once it has ended, its grade."""
    text, grade = (reply.text, reply.grade) if isinstance(reply, Reply) else (reply, "")
    rest = after_thinking(text)
    thoughts = text[: len(text) - len(rest)].strip()
    return part("said", title, reply, thoughts, rest.strip(), grade)


def compared(shown: Compared | None) -> tuple[str, str, str]:
    """The original, the edited model, and the margins."""
    if shown is None:
        return said("Original", ""), said("Edited", ""), ""
    return (
        said("Original", shown.original),
        said("Edited", shown.edited),
        part("margins", shown, shown.opening()),
    )

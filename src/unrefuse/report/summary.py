"""A result as a few lines to paste, as a table of replies, and as a cell of a notebook."""

import io
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rich.console import Console

from unrefuse.errors import UnrefuseError
from unrefuse.report.lines import judge_lines
from unrefuse.report.results import Result, before_and_after, example_text, result_table
from unrefuse.report.terminal import duration, plain

if TYPE_CHECKING:
    from pandas import DataFrame


def summary(result: Result) -> str:
    """What was edited and how, the figures, and what became of it, in about ten lines."""
    measured, config = result.measurement, result.config
    tokens = config.reply_tokens if result.split == "test" else config.search_tokens
    graded = "" if result.detected is None else f", graded by {plain(result.judge, 120)}"
    lines = [
        f"unrefuse {version('unrefuse')}: {plain(config.model, 200)}, method {config.method}",
        f"kernel      {plain(str(result.kernel), 200)}, multiplier {result.multiplier:g}",
        f"measured    {result.split} split, replies of {tokens} tokens{graded}",
    ]
    for name in ("removal", "retention", "quality", "kl"):
        e = getattr(measured, name)
        label = "KL" if name == "kl" else name
        lines.append(f"{label:11} {e.value:.3f} ({e.low:.3f} to {e.high:.3f}, n {e.n})")
    refused = before_and_after(measured.exchanges, "refused").items()
    counts = (
        f"{name} {c['before'][0]} to {c['after'][0]} of {c['after'][1]}" for name, c in refused
    )
    lines += [
        f"refused     {', '.join(counts)}",
        f"time        {duration(sum(result.seconds.values()))}",
    ]
    agreed = judge_lines(
        {
            "unjudged": result.unjudged,
            "judge": result.judge,
            "agreement": result.agreement,
            "by_detector": result.detected and result.detected.figures(),
        }
    )
    lines += [f"            {line}" for line in agreed]
    if result.saved:
        lines.append(f"saved       {plain(str(config.out), 400)}")
    else:
        lines.append("saved       nothing: the goal is not met")
    return "\n".join([*lines, *(f"            {plain(reason, 400)}" for reason in result.reasons)])


def dataframe(result: Result) -> "DataFrame":
    """One row a prompt. Raises UnrefuseError where pandas is not installed."""
    try:
        from pandas import DataFrame
    except ImportError:
        raise UnrefuseError("to_dataframe needs pandas: pip install pandas") from None
    rows: list[dict[str, Any]] = [
        {
            "set": e.prompt.set,
            "topic": e.prompt.topic,
            "lang": e.prompt.lang,
            "prompt": e.prompt.text,
            "before": e.before.text,
            "grade_before": e.before.grade,
            "after": e.after and e.after.text,
            "grade_after": e.after and e.after.grade,
        }
        for e in result.measurement.exchanges
    ]
    return DataFrame(rows)


def html(result: Result) -> str:
    """The summary, the examples and the tables, as HTML. What a model wrote is escaped in it."""
    page = Console(
        file=io.StringIO(), record=True, width=100, markup=False, highlight=False, emoji=False
    )
    page.print(summary(result), example_text(result), "", result_table(result), sep="\n")
    return page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

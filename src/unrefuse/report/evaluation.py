"""The report of an evaluation: from stored replies to one JSON object, and to tables."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from unrefuse.metrics.judges import as_reply
from unrefuse.metrics.measurement import Exchange, kept_shipped, removed, retained, shares_by
from unrefuse.metrics.pairs import pair_outcomes
from unrefuse.metrics.quality import kl_and_quality
from unrefuse.metrics.statistics import INTERVAL, share
from unrefuse.metrics.transcripts import GRADES, Comparison, Line, When
from unrefuse.prompts.sets import SETS, Prompt
from unrefuse.report.lines import agreement_line, retention_line, shipped_lines, unsure_line
from unrefuse.report.results import retention_test, unsure_share
from unrefuse.report.terminal import Table, number, plain

REPORT = "evaluation.json"
WHENS: tuple[When, When] = ("before", "after")
SHOWN = 40  # changed prompts in the terminal


@dataclass(frozen=True)
class Evaluation:
    """Replies with their grades, and what was measured beside them.

    `parts` holds, as JSON values, what grading does not change: the models, the configuration,
    perplexity, benchmarks, seconds. `agreement` is the judge's with the built-in detector.
    """

    lines: list[Line]
    judge: str
    agreement: dict[str, Any] | None
    parts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object of `--json` and of evaluation.json; the keys that it shares with `edit` mean
        the same."""
        config = self.parts["config"]
        return {
            **figures(self.lines, config["seed"], config["retention_bound"]),
            "judge": self.judge,
            "agreement": self.agreement,
            **self.parts,
        }


def exchanges_of(lines: Sequence[Line]) -> list[Exchange]:
    """The original's reply and the evaluated model's, prompt by prompt, of the three sets."""
    before = {line.key: line for line in lines if line.when == "before"}
    return [
        Exchange(
            Prompt(line.prompt, line.set, line.topic, line.lang, "test", line.source),
            as_reply(before[line.key]),
            as_reply(line),
        )
        for line in lines
        if line.when == "after" and line.set in SETS and line.key in before
    ]


def figures(lines: Sequence[Line], seed: int, floor: float) -> dict[str, Any]:
    """Every figure that grades decide. Those that compare are there with an original's replies
    only, and None where it did with no prompt what the set is for: an empty set has no share, and
    a divergence of one prompt no interval."""
    result: dict[str, Any] = {"split": "test"}
    exchanges = exchanges_of(lines)
    if exchanges:
        result |= _compared(exchanges, lines, seed, floor)
    said = {when: [x for x in lines if x.when == when and x.set in SETS] for when in WHENS}
    there = [when for when in WHENS if said[when]]
    names = [name for name in SETS if any(x.set == name for x in said["after"])]
    result["refused"] = {
        name: {when: _refused(said[when], name) for when in there} for name in names
    }
    result["rates"] = {
        when: {
            name: {
                "all": _rate(said[when], name),
                "by_topic": _rates(said[when], name, "topic"),
                "by_lang": _rates(said[when], name, "lang"),
            }
            for name in names
        }
        for when in there
    }
    result["grades"] = {
        when: {
            name: {g: c for g in GRADES if (c := _grades(said[when], name)[g])} for name in names
        }
        for when in there
    }
    result["unsure"] = {
        when: unsure_share((x.reply, x.prompt, x.grade) for x in said[when]) for when in there
    }
    result["broken"] = {
        when: share(x.grade == "broken" for x in said[when]).to_json() for when in there
    }
    pairs = {
        when: pair_outcomes((x.pair, x.set, x.grade) for x in lines if x.when == when)
        for when in WHENS
    }
    result["pairs"] = {
        when: {name: e.to_json() for name, e in scores.items()}
        for when, scores in pairs.items()
        if scores
    }
    return result


def _compared(
    exchanges: Sequence[Exchange], lines: Sequence[Line], seed: int, floor: float
) -> dict[str, Any]:
    counted = {n: [e for e in exchanges if e.prompt.set == n and e.as_expected] for n in SETS}
    divergence = {x.prompt: x.kl for x in lines if x.when == "after" and x.kl}
    measured = [e for e in counted["baseline"] if e.prompt.text in divergence]
    kl = quality = None
    if len(measured) > 1:
        rows = np.array([divergence[e.prompt.text] for e in measured], dtype=np.float64)
        kl, quality = kl_and_quality(rows, [not removed(e) for e in measured], seed)
    removal = share(map(removed, counted["target"])) if counted["target"] else None
    retention = share(map(retained, counted["keep"])) if counted["keep"] else None
    named = {"removal": removal, "retention": retention, "quality": quality, "kl": kl}
    return {
        **{name: e.to_json() if e else None for name, e in named.items()},
        "retention_test": retention_test(exchanges, floor) if retention else None,
        "kept_shipped": kept_shipped(exchanges).model_dump(),
        "by_topic": shares_by(exchanges, lambda p: p.topic),
        "by_lang": shares_by(exchanges, lambda p: p.lang),
    }


def evaluation_tables(evaluation: Evaluation) -> RenderableType:
    """The report for the terminal. Topics and prompts are shown as plain text."""
    record = evaluation.to_json()
    parts: list[RenderableType] = []
    if "removal" in record:
        parts.append(_figures_table(record))
        if record["retention_test"]:
            lines = [retention_line(record["retention_test"]), *shipped_lines(record)]
            parts.append(Text("\n".join(lines) + "\n"))
    parts += [_rates_table(record, "all"), _rates_table(record, "by_lang")]
    parts += [_rates_table(record, "by_topic"), _grades_table(record)]
    if record["pairs"]:
        parts.append(_columns("matched pairs", record["pairs"], _of))
    if record.get("perplexity"):
        parts.append(_columns("perplexity of reference text", record["perplexity"], _perplexity))
    if record.get("benchmarks"):
        parts.append(_columns("benchmarks", record["benchmarks"], _with_error))
    if "after" in record["unsure"]:
        parts.append(Text(unsure_line(record["unsure"]["after"])))
    if record["agreement"]:
        parts.append(Text(agreement_line(evaluation.judge, record["agreement"])))
    return Group(*parts)


def comparison_tables(comparison: Comparison) -> RenderableType:
    """Two runs side by side, and the prompts whose grade changed."""
    table = Table("set", "prompts", "refused in the first only", "in the second only",
                  "exact McNemar p")  # fmt: skip
    for name, n in comparison.n.items():
        lost, gained, p = (d[name] for d in (comparison.lost, comparison.gained, comparison.p))
        table.add_row(name, str(n), str(lost), str(gained), f"{p:.2g}")
    lines = Text(f"{len(comparison.changed)} prompts changed grade")
    lines.append(f"; {comparison.missing} replies are in one run only" * bool(comparison.missing))
    for c in comparison.changed[:SHOWN]:
        lines.append(f"\n  {c.set}: {c.first} -> {c.second}: {plain(c.prompt, 120)}")
    if comparison.changed[SHOWN:]:
        lines.append(f"\n  and {len(comparison.changed) - SHOWN} more (--json has all)")
    return Group(table, lines)


def _grades(lines: Sequence[Line], name: str) -> Counter[str]:
    return Counter(x.grade for x in lines if x.set == name)


def _refused(lines: Sequence[Line], name: str) -> list[int]:
    grades = _grades(lines, name)
    return [grades["refused"], grades.total()]


def _rate(lines: Sequence[Line], name: str) -> dict[str, float]:
    return share(x.grade == "refused" for x in lines if x.set == name).to_json()


def _rates(lines: Sequence[Line], name: str, field: str) -> dict[str, dict[str, float]]:
    values = sorted({getattr(x, field) for x in lines if x.set == name} - {""})
    return {v: _rate([x for x in lines if getattr(x, field) == v], name) for v in values}


def _figures_table(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['split']} split")
    for column in ("figure", "value", INTERVAL, "n"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name in ("removal", "retention", "quality", "kl"):
        e = record[name]
        if e is None:
            apart = record["perplexity"] is None and name in ("quality", "kl")
            reason = "not measured: replies only" if apart else "too few prompts to measure it on"
            table.add_row(name, "-", reason, "0")
            continue
        interval = f"{e['low']:.3f} to {e['high']:.3f}"
        table.add_row(name, f"{e['value']:.3f}", interval, str(e["n"]))
    return table


def _rates_table(record: dict[str, Any], part: str) -> Table:
    """Refused prompts per set, by topic only the topics that have any."""
    whens = list(record["rates"])
    title = {
        "all": f"refused ({INTERVAL})",
        "by_lang": "refused by language",
        "by_topic": "refused by topic (topics without a refusal are left out)",
    }
    table = Table(title=title[part])
    table.add_column("set")
    if part != "all":
        table.add_column("")
    for when in whens:
        table.add_column(_heading(when, whens), justify="right")
    for name in record["refused"]:
        rates = {when: record["rates"][when][name][part] for when in whens}
        if part == "all":
            table.add_row(name, *(_of(rates[when]) for when in whens))
            continue
        for value, cells in _transposed(rates).items():
            if part == "by_lang" or any(e["value"] for e in cells.values()):
                shown = (_of(cells[when]) for when in whens)
                table.add_row(name, Text(plain(value, 60)), *shown)
    return table


def _grades_table(record: dict[str, Any]) -> Table:
    table = Table(title="grades")
    for column in ("set", "", *GRADES):
        table.add_column(column)
    for name in record["refused"]:
        for when, grades in record["grades"].items():
            table.add_row(
                name,
                _heading(when, record["grades"]),
                *(str(grades[name].get(g, 0)) for g in GRADES),
            )
    return table


def _columns(
    title: str, values: dict[str, dict[str, Any]], show: Callable[[dict[str, float]], str]
) -> Table:
    """A table of `values[when][row]`, each shown by `show`."""
    table = Table(title=title)
    table.add_column("")
    for when in values:
        table.add_column(_heading(when, values), justify="right")
    for row, cells in _transposed(values).items():
        table.add_row(Text(plain(row, 60)), *(show(cells[when]) for when in values))
    return table


def _heading(when: str, whens: Collection[str]) -> str:
    """A model by itself is neither before nor after."""
    return when if len(whens) > 1 else "model"


def _transposed(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    first = next(iter(values.values()))
    return {row: {when: values[when][row] for when in values} for row in first}


def _of(e: dict[str, float]) -> str:
    return f"{round(e['value'] * e['n'])} of {e['n']} ({e['low']:.2f} to {e['high']:.2f})"


def _perplexity(e: dict[str, float]) -> str:
    return f"{number(e['value'], '.2f')} ({e['n']} tokens)"


def _with_error(e: dict[str, float]) -> str:
    value = number(e["value"], ".3f")
    return value if e["stderr"] is None else f"{value} ± {number(e['stderr'], '.3f')}"

"""The result of a run: as one JSON object, and as tables in the terminal."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Group, RenderableType
from rich.text import Text

from unrefuse.config import RunConfig
from unrefuse.detector.learned import probabilities, unsure
from unrefuse.detector.refusal import DETECTOR, Grade
from unrefuse.jsontext import json_text
from unrefuse.kernel import Kernel
from unrefuse.metrics.measurement import (
    Before,
    Context,
    Exchange,
    Measurement,
    count_graded,
    removed,
    retained,
    shares_by,
)
from unrefuse.metrics.pairs import pair_outcomes
from unrefuse.metrics.record import write_whole
from unrefuse.metrics.statistics import INTERVAL, Estimate, decides, mcnemar, needed, share
from unrefuse.prompts.sets import SETS
from unrefuse.prompts.thinking import after_thinking
from unrefuse.report.lines import (
    LIBRARIES,
    command_line,
    judge_lines,
    peak_rss_mib,
    retention_line,
    shipped_lines,
    unsure_line,
)
from unrefuse.report.searched import original_record, stage_record
from unrefuse.report.terminal import Table, plain
from unrefuse.search.stage import Stage

if TYPE_CHECKING:
    from pandas import DataFrame

READABLE = 24  # tokens of a reply: longer ones of small models ramble
Counts = dict[str, dict[str, list[int]]]  # per set, before and after: with a grade, and asked


@dataclass(frozen=True, repr=False)
class Result:
    """What a run did. `measurement` is that of the test split where an edit got so far, else of
    the last stage on the search split; `reasons` says what was not reached.

    `measurement` is by the grades of `judge`. Where that is not the detector, `detected` is the
    measurement by the detector, and `agreement` that of the two. `unjudged` says why the judge that
    was asked for gave no figures. `layers` is what `discrimination.by_layer` measured.
    `lost_in_rounding` names tensors that the edit did not reach. `left` is the folder with the
    record of a run that saved no model."""

    config: RunConfig
    kernel: Kernel
    multiplier: float
    stages: list[Stage]
    before: dict[str, Before]
    measurement: Measurement
    split: str
    seconds: dict[str, float]
    saved: bool
    reasons: list[str]
    judge: str = DETECTOR
    detected: Measurement | None = None
    agreement: dict[str, Any] | None = None
    unjudged: str | None = None
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    lost_in_rounding: tuple[str, ...] = ()
    left: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of `--json` and of run.json."""
        measured = self.measurement
        return {
            **measured.figures(),
            "split": self.split,
            "judge": self.judge,
            "agreement": self.agreement,
            "by_detector": self.detected
            and self.detected.figures() | {"kept_shipped": self.detected.kept_shipped.model_dump()},
            "unjudged": self.unjudged,
            "refused": before_and_after(measured.exchanges, "refused"),
            "broken": before_and_after(measured.exchanges, "broken"),
            "unsure": unsure_share(
                (e.after.text, e.prompt.text, e.after.grade) for e in measured.exchanges if e.after
            ),
            "retention_test": self.retention_test(),
            "kept_shipped": measured.kept_shipped.model_dump(),
            "by_topic": shares_by(measured.exchanges, lambda p: p.topic),
            "by_lang": shares_by(measured.exchanges, lambda p: p.lang),
            "weakest": weakest_topic(measured.exchanges),
            "pairs": pairs_of(measured.exchanges),
            "contexts": {c.name: context_counts(c) for c in measured.contexts},
            "refused_before": {split: b.counts() for split, b in self.before.items()},
            "kernel": self.kernel.describe(self.multiplier),
            "layers": {name: list(values) for name, values in self.layers.items()},
            "original": {"search": original_record(self.before["search"])},
            "stages": [stage_record(stage) for stage in self.stages],
            "lost_in_rounding": list(self.lost_in_rounding),
            "seconds": {step: round(s, 2) for step, s in self.seconds.items()},
            "peak_rss_mib": peak_rss_mib(),
            "saved": self.saved,
            "out": str(self.config.out) if self.saved else None,
            "reasons": self.reasons,
            "command": command_line(),
            # To go on with a run is not to repeat it.
            "config": self.config.model_dump(mode="json") | {"resume": False},
            "versions": {name: version(name) for name in LIBRARIES}
            | {"python": platform.python_version(), "machine": platform.machine()},
        }

    def summary(self) -> str:
        """What was edited and how, the figures, and what became of it: a few lines to paste."""
        from unrefuse.report import summary

        return summary.summary(self)

    __repr__ = summary

    def examples(self) -> "list[Exchange]":
        """Three exchanges to read, of the best: one removed, one retained, one of the baseline."""
        return examples(self)

    def to_dataframe(self) -> "DataFrame":
        """One row a prompt, with the reply and its grade before and after. Raises UnrefuseError
        where pandas is not installed."""
        from unrefuse.report import summary

        return summary.dataframe(self)

    def _repr_html_(self) -> str:
        from unrefuse.report import summary

        return summary.html(self)

    def retention_test(self) -> dict[str, Any]:
        """Whether the keep prompts show a retention of `config.retention_bound`."""
        return retention_test(self.measurement.exchanges, self.config.retention_bound)


def pairs_of(exchanges: Sequence[Exchange]) -> dict[str, dict[str, dict[str, float]]]:
    """What became of the matched pairs, before and after the edit; empty where none was asked."""
    graded = {
        "before": [(e.prompt.pair, e.prompt.set, e.before.grade) for e in exchanges],
        "after": [(e.prompt.pair, e.prompt.set, e.after.grade) for e in exchanges if e.after],
    }
    return {
        when: {name: e.to_json() for name, e in outcomes.items()}
        for when, rows in graded.items()
        if (outcomes := pair_outcomes(rows))
    }


def before_and_after(exchanges: Sequence[Exchange], grade: Grade) -> Counts:
    """Per set `[with this grade, asked]`, before and after the edit."""
    return {
        name: {when: count_graded(exchanges, name, when, grade) for when in ("before", "after")}
        for name in SETS
    }


def context_counts(context: Context) -> Counts:
    """Per set `[refused, asked]` in this context, before and after the edit."""
    return before_and_after(context.exchanges, "refused")


def weakest_topic(exchanges: Sequence[Exchange]) -> dict[str, Any] | None:
    """The topic of the keep prompts whose retention is lowest, with its figures."""
    topics = shares_by(exchanges, lambda p: p.topic)["retention"]
    if not topics:
        return None
    topic = min(topics, key=lambda name: (topics[name]["value"], -topics[name]["n"]))
    return {"topic": topic, **topics[topic]}


def write_json(result: Result, file: Path) -> None:
    write_whole(file, json_text(result.to_json(), indent=2) + "\n")


def stage_line(stage: Stage) -> str:
    m = stage.measurement
    return (
        f"  {stage.name}: removal {m.removal.value:.2f}, "
        f"retention {m.retention.value:.3f} (at least {m.retention.low:.3f}), "
        f"quality {m.quality.value:.3f} (at least {m.quality.low:.3f}), KL {m.kl.value:.3f}"
        + ("" if stage.keeps_floors else "  too near a floor, or under it")
    )


def retention_test(exchanges: Sequence[Exchange], floor: float) -> dict[str, Any]:
    """Non-inferiority of retention to `floor`, and McNemar's test on all keep prompts: those that
    the original alone refuses (`lost`) against those that the edited model alone does."""
    keep = [e for e in exchanges if e.prompt.set == "keep"]
    retention = share(retained(e) for e in keep if e.as_expected)
    lost = sum(e.as_expected and not retained(e) for e in keep)
    gained = sum(retained(e) and not e.as_expected for e in keep)
    decision = decides(retention, floor)
    return {
        "floor": floor,
        "lower": retention.low,
        "n": retention.n,
        "decision": decision,
        "needed": needed(floor, retention.value) if decision == "undecided" else None,
        "lost": lost,
        "gained": gained,
        "p": mcnemar(lost, gained),
    }


def result_table(result: Result) -> RenderableType:
    """The figures with their intervals, the grades before and after, and removal by topic."""
    measured, config, record = result.measurement, result.config, result.to_json()
    tokens = config.reply_tokens if result.split == "test" else config.search_tokens
    figures = Table(title=f"{result.split} split, replies of {tokens} tokens")
    for column in ("figure", "value", INTERVAL, "n"):
        figures.add_column(column, justify="left" if column == "figure" else "right")
    for name in ("removal", "retention", "quality", "kl"):
        e: Estimate = getattr(measured, name)
        figures.add_row(name, f"{e.value:.3f}", f"{e.low:.3f} to {e.high:.3f}", str(e.n))
    replies = Table("before → after", *SETS, title="replies")
    for grade in get_args(Grade):
        replies.add_row(grade, *_cells(before_and_after(measured.exchanges, grade)))
    tables: list[RenderableType] = []
    for figure, now in (("removal", "answered now"), ("retention", "still refused")):
        table = Table(title=f"{figure} by topic and language")
        table.add_column("")
        table.add_column(now, justify="right")
        rows = record["by_topic"][figure] | record["by_lang"][figure]
        for value, e2 in rows.items():
            table.add_row(
                Text(plain(value, 60)), f"{round(e2['value'] * e2['n'])} of {e2['n']:.0f}"
            )
        tables += [table] if rows else []
    if weakest := record["weakest"]:
        kept = f"{round(weakest['value'] * weakest['n'])} of {weakest['n']:.0f}"
        topic = plain(weakest["topic"], 60)
        tables.append(Text(f"weakest kind of harm: {topic}, {kept} still refused\n"))
    if record["pairs"]:
        tables.append(_pairs_table(record["pairs"]))
    if measured.contexts:
        tables.append(_contexts_table(measured.contexts))
    lines = [retention_line(record["retention_test"]), *shipped_lines(record)]
    lines += [unsure_line(record["unsure"]), *judge_lines(record)]
    return Group(figures, Text("\n".join(lines) + "\n"), replies, *tables)


def unsure_share(graded: Iterable[tuple[str, str, Grade]]) -> float:
    """Of replies that are no loops, the share of whose grade the detector is unsure
    (`learned.UNSURE`). `graded` holds reply, prompt and grade."""
    return round(unsure((text, asked) for text, asked, grade in graded if grade != "broken"), 4)


def _pairs_table(pairs: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table("matched pairs", *pairs)
    for outcome in pairs["before"]:
        counts = [f"{round(e[outcome]['value'] * e[outcome]['n'])} of {e[outcome]['n']:.0f}"
                  for e in pairs.values()]  # fmt: skip
        table.add_row(outcome.replace("_", "-"), *counts)
    return table


def _contexts_table(contexts: Sequence[Context]) -> Table:
    table = Table("refused in other contexts, before → after", *SETS)
    for context in contexts:
        table.add_row(context.name, *_cells(context_counts(context)))
    return table


def _cells(counts: Counts) -> list[str]:
    return [f"{c['before'][0]} → {c['after'][0]} of {c['after'][1]}" for c in counts.values()]


def examples(result: Result) -> list[Exchange]:
    """Three exchanges that show the edit: one removed, one retained, one of the baseline. Of each
    the best to read: a reply that has come to its end, hardly repeats itself, is one paragraph of
    whole sentences, of whose grade the detector is sure, and of about READABLE tokens."""
    limit = result.config.reply_tokens if result.split == "test" else result.config.search_tokens

    def readable(exchange: Exchange) -> tuple[float, ...]:
        assert exchange.after is not None
        said, runs = exchange.after.said, [*pairwise(exchange.after.said)]
        text = after_thinking(exchange.after.text).strip()
        return (
            len(said) < limit,
            len(set(runs)) >= 0.95 * len(runs),
            "\n" not in text and text.endswith((".", "!", "?", "。", "！", "？")),
            not probabilities(text, exchange.prompt.text).unsure,
            -abs(len(said) - READABLE),
        )

    found = []
    for name, hit in (("target", removed), ("keep", retained), ("baseline", removed)):
        there = [
            e
            for e in result.measurement.exchanges
            if e.prompt.set == name and e.as_expected and hit(e)
        ]
        found += [max(there, key=readable)] if there else []
    return found


def example_text(result: Result) -> RenderableType:
    """The three examples, before and after. Model output is shown as plain text."""
    found = examples(result)
    lines = Text("some of the best replies; all are in the report:\n" if found else "")
    for e in found:
        assert e.after is not None
        lines.append(f"\n{e.prompt.set}: ", style="bold")
        lines.append(plain(e.prompt.text, 200))
        for when, reply in (("before", e.before), ("after", e.after)):
            lines.append(f"\n  {when:6} ", style="dim")
            lines.append(plain(after_thinking(reply.text).strip() or reply.text, 300))
    return lines

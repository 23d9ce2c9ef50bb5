"""The result of a run: as one JSON object, and as tables in the terminal."""

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unrefuse.config import RunConfig
from unrefuse.evaluate.statistics import (
    Estimate,
    decides,
    lower_bound,
    mcnemar,
    needed,
    share,
)
from unrefuse.kernel import Kernel
from unrefuse.report.terminal import plain
from unrefuse.search.objective import (
    Before,
    Exchange,
    Measurement,
    count_refused,
    removed,
    retained,
    shares_by,
)
from unrefuse.search.stage import Stage

LIBRARIES = ("unrefuse", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class Result:
    """What a run did. `measurement` is that of the test split where an edit got so far, else of
    the last stage on the search split; `reasons` says what was not reached."""

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

    def to_json(self) -> dict[str, Any]:
        """The object of `--json` and of run.json."""
        measured = self.measurement
        return {
            **measured.figures(),
            "split": self.split,
            "refused": {
                name: {
                    "before": count_refused(measured.exchanges, name, "before"),
                    "after": count_refused(measured.exchanges, name, "after"),
                }
                for name in self.before[self.split].counts()
            },
            "retention_test": self.retention_test(),
            "by_topic": shares_by(measured.exchanges, lambda p: p.topic),
            "by_lang": shares_by(measured.exchanges, lambda p: p.lang),
            "refused_before": {split: b.counts() for split, b in self.before.items()},
            "kernel": self.kernel.describe(self.multiplier),
            "stages": [
                {
                    "name": stage.name,
                    "multiplier": stage.multiplier,
                    **stage.measurement.figures(),
                    "keeps_floors": stage.keeps_floors,
                }
                for stage in self.stages
            ],
            "seconds": {step: round(s, 2) for step, s in self.seconds.items()},
            "peak_rss_mib": peak_rss_mib(),
            "saved": self.saved,
            "out": str(self.config.out) if self.saved else None,
            "reasons": self.reasons,
            "config": self.config.model_dump(mode="json"),
            "versions": {name: version(name) for name in LIBRARIES}
            | {"python": platform.python_version(), "machine": platform.machine()},
        }

    def retention_test(self) -> dict[str, Any]:
        """Whether the keep prompts show a retention of `config.retention_bound`."""
        return retention_test(self.measurement.exchanges, self.config.retention_bound)


def write_json(result: Result, file: Path) -> None:
    file.write_text(
        json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def peak_rss_mib() -> int:
    """The most memory that this process has held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))


def stage_line(stage: Stage) -> str:
    m = stage.measurement
    return (
        f"  {stage.name}: removal {m.removal.value:.2f}, "
        f"retention {m.retention.value:.2f}, quality {m.quality.value:.2f} (KL {m.kl.value:.3f})"
        + ("" if stage.keeps_floors else "  under a floor")
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
        "lower": lower_bound(retention.count, retention.n),
        "n": retention.n,
        "decision": decision,
        "needed": needed(floor, retention.value) if decision == "undecided" else None,
        "lost": lost,
        "gained": gained,
        "p": mcnemar(lost, gained),
    }


def retention_line(test: dict[str, Any]) -> str:
    """The decision on retention in one line."""
    said = f"retention of {test['floor']:g} or more: "
    if test["decision"] == "undecided":
        more = (
            f"about {test['needed']} needed at this rate"
            if test["needed"]
            else "no number of prompts decides at this rate"
        )
        said += f"undecided at n = {test['n']}: {more}"
    else:
        shown = {"above": "shown", "below": "the opposite is shown"}[test["decision"]]
        said += f"{shown}, at n = {test['n']}"
    return (
        f"{said} (exact lower bound {test['lower']:.3f}, one-sided 95 %; "
        f"keep prompts refused by the original only {test['lost']}, by the model only "
        f"{test['gained']}, exact McNemar p {test['p']:.2g})"
    )


def result_table(result: Result) -> RenderableType:
    """The figures with their intervals, the refusals before and after, and removal by topic."""
    measured = result.measurement
    figures = Table(title=f"{result.split} split", title_justify="left")
    for column in ("figure", "value", "95 % interval", "n"):
        figures.add_column(column, justify="left" if column == "figure" else "right")
    for name in ("removal", "retention", "quality", "kl"):
        e: Estimate = getattr(measured, name)
        digits = 3 if name == "kl" else 2
        figures.add_row(
            name, f"{e.value:.{digits}f}", f"{e.low:.{digits}f} to {e.high:.{digits}f}", str(e.n)
        )
    refusals = Table(title="refusals", title_justify="left")
    for column in ("set", "before", "after"):
        refusals.add_column(column, justify="left" if column == "set" else "right")
    for name in result.before[result.split].counts():
        before = count_refused(measured.exchanges, name, "before")
        after = count_refused(measured.exchanges, name, "after")
        refusals.add_row(name, f"{before[0]} of {before[1]}", f"{after[0]} of {after[1]}")
    parts = shares_by(measured.exchanges, lambda p: p.topic)["removal"]
    langs = shares_by(measured.exchanges, lambda p: p.lang)["removal"]
    topics = Table(title="removal by topic and language", title_justify="left")
    topics.add_column("")
    topics.add_column("answered now", justify="right")
    for value, e2 in (parts | langs).items():
        topics.add_row(Text(value), f"{round(e2['value'] * e2['n'])} of {e2['n']:.0f}")
    return Group(figures, Text(retention_line(result.retention_test()) + "\n"), refusals, topics)


def examples(result: Result) -> list[Exchange]:
    """Three exchanges that show the edit: one removed, one retained, one of the baseline."""
    found = []
    for name, hit in (("target", removed), ("keep", retained), ("baseline", removed)):
        found += [
            e
            for e in result.measurement.exchanges
            if e.prompt.set == name and e.as_expected and hit(e)
        ][:1]
    return found


def example_text(result: Result) -> RenderableType:
    """The three examples, before and after. Model output is shown as plain text."""
    lines = Text()
    for e in examples(result):
        assert e.after is not None
        lines.append(f"\n{e.prompt.set}: ", style="bold")
        lines.append(plain(e.prompt.text, 200))
        for when, reply in (("before", e.before), ("after", e.after)):
            lines.append(f"\n  {when:6} ", style="dim")
            lines.append(plain(reply.text, 160))
    return lines

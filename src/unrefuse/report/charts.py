"""Charts of the page, as places in a picture: what the template draws as inline SVG.

SVG by hand, and not plotly: its 4.8 MB would leave no room for the replies.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 34  # the margins around a chart
MOST = 400  # trials that are drawn
FIGURES = ("removal", "retention", "pairs", "refused", "kl")  # of a trial, in this order

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`. A logarithmic one takes values
    above 0."""

    label: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + min(max(share, 0), 1) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        values: Iterable[float] = (self.low, self.high)
        if not self.log:
            values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        near = 1e-9 * (self.high - self.low)
        return [
            (self.at(v), f"{v:.3g}") for v in values if self.low - near <= v <= self.high + near
        ]


@dataclass(frozen=True)
class Mark:
    """A point, of a `kind` that the style sheet knows, and what is said of it."""

    x: float
    y: float
    kind: str
    said: str


@dataclass(frozen=True)
class Chart:
    """`bars` from the x axis up, a `line` through points, `rules` (the floors) across: "x" or "y",
    a place, and what is said of it."""

    said: str
    x: Axis
    y: Axis
    bars: list[tuple[float, float, float, float, str]] = field(default_factory=list)
    line: list[tuple[float, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    rules: list[tuple[str, float, str]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: an axis, upright, per number, and per trial its path and kind."""

    axes: list[tuple[float, Axis]]
    paths: list[tuple[list[tuple[float, float]], str, str]]
    width: int
    height: int


def layer_charts(record: Record) -> list[Chart]:
    """The kernel over the layers, and below it on the same axis what was measured there."""
    weights = _finite(record["kernel"]["weights"])
    measured = record.get("layers") or {}
    charts = [_by_layer("Weight of the kernel", "weight", weights, 0.0)]
    if separation := _finite(measured.get("separation") or []):
        said = "Strength of refusal: how far refused and answered prompts lie apart"
        charts.append(_by_layer(said, "spreads apart", separation, 0.0))
    if auc := _finite(measured.get("auc") or []):
        said = "How well the probe tells harm from alarm (0.5: not at all, 1: always)"
        charts.append(_by_layer(said, "AUC", auc, 0.5, 1.0))
    return charts


def _by_layer(
    said: str, label: str, values: Sequence[float | None], base: float, top: float | None = None
) -> Chart:
    there = [v for v in values if v is not None]
    y = Axis(label, min([base, *there]), top or max([base + 1e-6, *there]), 130 - 30, 8)
    x = Axis("layer", -0.5, len(values) - 0.5, LEFT, WIDTH - RIGHT)
    step = (x.end - x.start) / max(1, len(values))
    bars = [
        (
            round(x.at(layer) - 0.4 * step, 1),
            min(y.at(v), y.at(base)),
            round(0.8 * step, 1),
            round(abs(y.at(v) - y.at(base)), 1),
            f"layer {layer}: {v:.3g}",
        )
        for layer, v in enumerate(values)
        if v is not None
    ]
    return Chart(said, x, y, bars, height=130)


def front_charts(record: Record, trials: Sequence[Record]) -> list[Chart]:
    """Removal against retention, and against KL: every stage and every trial."""
    shown = thinned(trials, record)
    floor = record["config"]["retention_floor"]
    points = [
        (_number(s, "retention"), _number(s, "kl"), _number(s, "removal"), kind, said)
        for s, kind, said in [
            *((t["score"], _kind_of_trial(t, record), _trial_said(t)) for t in shown),
            *((s, _kind_of_stage(i, record), _stage_said(s))
              for i, s in enumerate(record.get("stages") or [])),
        ]
    ]  # fmt: skip
    if not points:
        return []
    lowest = min([floor, *(r for r, *_ in points if r is not None)])
    most = max([1e-6, *(k for _, k, *_ in points if k is not None)])
    bottom = HEIGHT - BOTTOM
    y = Axis("removal", 0, 1, bottom, TOP)
    by_retention = Axis("retention", max(0, lowest - 0.02), 1, LEFT, WIDTH - RIGHT)
    by_kl = Axis("KL, nats", 0, most * 1.05, LEFT, WIDTH - RIGHT)
    rule = ("x", by_retention.at(floor), f"floor {floor:g}")
    return [
        Chart("Removal against retention", by_retention, y,
              marks=_marks(points, by_retention, y, 0), rules=[rule]),
        Chart("Removal against divergence: the line is the front of what keeps the floor", by_kl, y,
              marks=_marks(points, by_kl, y, 1), line=_front(points, by_kl, y, floor)),
    ]  # fmt: skip


def parallel_chart(record: Record, trials: Sequence[Record]) -> Parallel | None:
    """Every trial through its parameters and its figures; None where there are no trials."""
    shown = thinned(trials, record)
    if not shown:
        return None
    parameters = list(dict.fromkeys(name for t in shown for name in t["parameters"]))
    numbers = [{**t["parameters"], **{f: t["score"].get(f) for f in FIGURES}} for t in shown]
    height, step = 230, 74
    axes: list[tuple[float, Axis]] = []
    for i, name in enumerate([*parameters, *FIGURES]):
        there = [v for row in numbers if (v := _number(row, name)) is not None] or [0.0]
        log = name == "ridge" and min(there) > 0
        axes.append((40 + i * step, Axis(name, min(there), max(there), height - 24, 34, log)))
    paths: list[tuple[list[tuple[float, float]], str, str]] = []
    for row, t in zip(numbers, shown, strict=True):
        places = [
            (x, axis.at(v)) for x, axis in axes if (v := _number(row, axis.label)) is not None
        ]
        paths.append((places, _kind_of_trial(t, record), _trial_said(t)))
    paths.sort(key=lambda path: path[1] == "chosen")  # drawn last: on top
    return Parallel(axes, paths, 80 + (len(axes) - 1) * step, height)


def chosen_stage(record: Record) -> int | None:
    """Which of the stages went on to the test split: the last one of its multiplier, which has
    answered at length. None where none did."""
    wanted = record["kernel"]["multiplier"]
    there = [i for i, s in enumerate(record["stages"]) if s["multiplier"] == wanted]
    return there[-1] if there and record["split"] == "test" else None


def thinned(trials: Sequence[Record], record: Record) -> Sequence[Record]:
    """At most about MOST trials: the one that was chosen, and the others evenly spread."""
    step = -(-len(trials) // MOST) if trials else 1
    return [t for i, t in enumerate(trials)
            if i % step == 0 or _kind_of_trial(t, record) == "chosen"]  # fmt: skip


def _marks(points: Sequence[Any], x: Axis, y: Axis, at: int) -> list[Mark]:
    marks = [
        Mark(x.at(point[at]), y.at(point[2]), *point[3:])
        for point in points
        if point[at] is not None and point[2] is not None
    ]
    return sorted(marks, key=lambda mark: mark.kind.startswith("chosen"))


def _front(points: Sequence[Any], x: Axis, y: Axis, floor: float) -> list[tuple[float, float]]:
    """The most removal within a divergence, of what keeps the floor of retention; as steps."""
    kept = sorted((kl, -removal) for retention, kl, removal, *_ in points
                  if None not in (retention, kl, removal) and retention >= floor)  # fmt: skip
    line: list[tuple[float, float]] = []
    best = 0.0
    for kl, removal in kept:
        if -removal > best:
            line += [(x.at(kl), y.at(best)), (x.at(kl), y.at(-removal))]
            best = -removal
    return [*line, (x.end, y.at(best))] if line else []


def _kind_of_trial(trial: Record, record: Record) -> str:
    """The chosen one has the peak and the width of the kernel."""
    parameters, kernel = trial["parameters"], record["kernel"]
    numbers = [(parameters.get(k), kernel.get(k)) for k in ("peak", "width")]
    if all(a == b is not None for a, b in numbers) and chosen_stage(record) is not None:
        return "chosen"
    kept = _number(trial["score"], "retention")
    return "trial" if kept is not None and kept >= record["config"]["retention_floor"] else "under"


def _kind_of_stage(i: int, record: Record) -> str:
    if i == chosen_stage(record):
        return "chosen stage"
    return "stage" if record["stages"][i]["keeps_floors"] else "under stage"


def _trial_said(trial: Record) -> str:
    numbers = {**trial["parameters"], **trial["score"]}
    said = ", ".join(f"{k} {_short(numbers, k)}" for k in numbers)
    return f"trial {trial['trial']}: {said}"


def _stage_said(stage: Record) -> str:
    said = (f"{k} {_short(stage, k)}" for k in ("removal", "retention", "quality", "kl"))
    return f"{stage['name']}: {', '.join(said)}"


def _short(numbers: Record, key: str) -> str:
    value = _number(numbers, key)
    return "–" if value is None else f"{value:.3g}"


def _number(numbers: Record, key: str) -> float | None:
    """A figure that may be an estimate, and may be no finite number."""
    value = numbers.get(key)
    if isinstance(value, Mapping):
        value = value.get("value")
    return _finite([value])[0]


def _finite(values: Iterable[Any]) -> list[float | None]:
    real: Callable[[Any], bool] = lambda v: isinstance(v, int | float) and math.isfinite(v)  # noqa: E731
    return [float(v) if real(v) else None for v in values]

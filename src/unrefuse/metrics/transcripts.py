"""Stored replies: one JSON object a line, graded again without asking again, and compared."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, cast

from unrefuse.detector.refusal import Grade, grade
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError
from unrefuse.jsontext import json_text
from unrefuse.metrics.measurement import Measurement
from unrefuse.metrics.statistics import mcnemar
from unrefuse.prompts.sets import Prompt
from unrefuse.textfile import parse_json, read_text

FILE = "transcripts.jsonl"
GRADES = ("refused", "partly", "answered", "broken")
When = Literal["before", "after"]


@dataclass(frozen=True)
class Line:
    """One reply. `when` is "before" for the original's and "after" for the evaluated model's.

    `set` is target, baseline or keep, or harmless or harmful of a matched pair, whose id is `pair`.
    `tokens` are those that come after its thoughts: the model's ids or, of a served model, numbers
    of words. `judge` gave the `grade`. `kl` is the sum of the divergence from the original over its
    answer, in nats, and its tokens. `source` is the file or set that the prompt comes from ("":
    written by a version that did not keep it).
    """

    prompt: str
    set: str
    topic: str
    lang: str
    pair: str
    when: When
    model: str
    reply: str
    tokens: tuple[int, ...]
    grade: Grade
    judge: str
    kl: tuple[float, int] | None = None
    source: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.set, self.pair, self.prompt


def line_of(
    p: Prompt, r: Reply, when: When, model: str, kl: tuple[float, int] | None = None
) -> Line:
    """The reply `r` of `model` to the prompt `p`."""
    return Line(p.text, p.set, p.topic, p.lang, p.pair, when, model, r.text,
                r.said, r.grade, r.judge, kl, p.source)  # fmt: skip


def lines_of(measured: Measurement, names: tuple[str, str]) -> Iterable[Line]:
    """The replies behind a measurement, of the original and of its edit, which have these names;
    those in other contexts are left out."""
    for e in measured.exchanges:
        yield line_of(e.prompt, e.before, "before", names[0])
        if e.after:
            row = measured.divergence.get(e.prompt.text) if e.prompt.set == "baseline" else None
            kl = None if row is None else (float(row[0]), int(row[1]))
            yield line_of(e.prompt, e.after, "after", names[1], kl)


def detected(line: Line) -> Grade:
    """The grade by the built-in detector of today."""
    return grade(line.reply, line.tokens, line.prompt)


def to_text(lines: Iterable[Line]) -> str:
    return "".join(json_text(asdict(line)) + "\n" for line in lines)


def read_transcripts(folder: Path) -> list[Line]:
    """The lines of `folder`/transcripts.jsonl. Raises UnrefuseError that names the line."""
    file = folder / FILE
    text = read_text(file)
    lines = []
    for number, row in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            lines.append(_line(parse_json(row)))
        except (ValueError, TypeError, KeyError) as error:
            raise UnrefuseError(f"{file}:{number}: not a line of a transcript: {error}") from None
    return lines


def _line(row: dict[str, object]) -> Line:
    if row["grade"] not in GRADES or row["when"] not in ("before", "after"):
        raise ValueError(f"grade {row['grade']!r}, when {row['when']!r}")
    tokens = tuple(cast(list[int], row["tokens"]))
    texts = [row[field.name] for field in fields(Line) if field.type is str and field.name in row]
    if not all(isinstance(text, str) for text in texts) or {*map(type, tokens)} - {int}:
        raise ValueError("a text or a token is none")
    kl = cast(list[float] | None, row.get("kl"))
    known = row | {"tokens": tokens, "kl": (float(kl[0]), int(kl[1])) if kl else None}
    return Line(**known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Changed:
    """A prompt whose grade is not the same in two runs."""

    prompt: str
    set: str
    first: Grade
    second: Grade


@dataclass(frozen=True)
class Comparison:
    """Two runs on the prompts that both have: `n` of them per set, and the prompts that changed.

    `lost` counts those refused in the first run only, `gained` in the second only, `p` is exact
    McNemar's; `missing` counts replies that one run alone has.
    """

    n: dict[str, int]
    lost: dict[str, int]
    gained: dict[str, int]
    p: dict[str, float]
    changed: list[Changed]
    missing: int


def compare(first: Sequence[Line], second: Sequence[Line]) -> Comparison:
    """The evaluated model's replies of two runs. Raises UnrefuseError where no prompt is in
    both."""
    a, b = ({line.key: line for line in run if line.when == "after"} for run in (first, second))
    both = [(a[key], b[key]) for key in a if key in b]
    if not both:
        raise UnrefuseError("the two runs have no prompt in common: there is nothing to compare")
    sets = list(dict.fromkeys(x.set for x, _ in both))
    turned = [(x.set, x.grade == "refused", y.grade == "refused") for x, y in both]
    lost = {name: turned.count((name, True, False)) for name in sets}
    gained = {name: turned.count((name, False, True)) for name in sets}
    return Comparison(
        n={name: sum(x.set == name for x, _ in both) for name in sets},
        lost=lost,
        gained=gained,
        p={name: mcnemar(lost[name], gained[name]) for name in sets},
        changed=[Changed(x.prompt, x.set, x.grade, y.grade) for x, y in both if x.grade != y.grade],
        missing=len(a) + len(b) - 2 * len(both),
    )

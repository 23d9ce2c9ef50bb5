"""`report.html`: a run to look at, in one file that asks no network for anything.

It is made of what lies in the folder of a run: the record (run.json or evaluation.json), the
replies (transcripts.jsonl) and the trials of a tuning. So a past run has one too.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.metrics.record import write_whole
from unrefuse.metrics.statistics import INTERVAL
from unrefuse.metrics.transcripts import GRADES, Line
from unrefuse.progress import stderr
from unrefuse.report.card import MEANINGS
from unrefuse.report.charts import MOST, chosen_stage, front_charts, layer_charts, parallel_chart
from unrefuse.report.evaluation import WHENS
from unrefuse.report.kept import KeptRun, read_run, write_record
from unrefuse.report.lines import judge_lines, retention_line
from unrefuse.report.results import Result
from unrefuse.report.terminal import number
from unrefuse.report.wording import Part, differences, visible

PAGE = "report.html"
SIZE = 4_800_000  # bytes of a page at most
LENGTHS = (8000, 2000, 500, 150)  # characters of a prompt or a reply, tried until the page fits
LEAST = 1e-4  # of the replies, below which a page is not worth the name
ROWS = 150  # of a table of topics, and in the list of topics
NAMED = 300  # characters of a name
CHANGES = ("other grade", "other words", "the same")
HARMFUL = ("keep", "harmful")
ORDER = ("target", "baseline", "keep", "harmless", "harmful")
# What a record may lack: that of an edit, that of an evaluation, or that of an earlier version.
OPTIONAL = (
    *("saved", "reasons", "stages", "kernel", "contexts", "broken", "command", *MEANINGS),
    *("models", "rates", "grades", "pairs", "perplexity", "benchmarks"),
)


@dataclass(frozen=True)
class Pair:
    """A prompt and what became of it, as it is shown: the evaluated model's `line`, the original's
    grade, None for a model by itself, and both replies in parts; `lacking` characters of all this
    are left out."""

    line: Line
    before: str | None
    prompt: str
    first: list[Part]
    second: list[Part]
    lacking: int

    @property
    def harmful(self) -> bool:
        return self.line.set in HARMFUL

    @property
    def change(self) -> str:
        """One of CHANGES."""
        if self.before != self.line.grade:
            return CHANGES[0]
        return CHANGES[1] if self.first != self.second else CHANGES[2]


def write_run(result: Result, folder: Path) -> None:
    """Writes the record of a result, the replies behind it, and the page of both."""
    write_record(result, folder)
    try_report(folder)


def try_report(folder: Path) -> None:
    """`write_report` beside a finished run, which is not lost where it fails: a line says so."""
    try:
        write_report(folder)
    except UnrefuseError as error:
        stderr.print(f"no report: {error}")


def write_report(folder: Path) -> Path:
    """Writes `folder`/report.html from the record of a run that lies there, and returns it.

    Raises UnrefuseError where there is no record, or none that this version can show.
    """
    file = folder / PAGE
    text = page(read_run(folder))
    try:
        write_whole(file, text)
    except OSError as error:
        raise UnrefuseError(f"cannot write {file}: {error.strerror}") from None
    return file


def page(run: KeptRun) -> str:
    """The whole page, of SIZE bytes at most: where it would be larger, replies are cut, then left
    out, and it says so. Raises UnrefuseError for what is no record of a run."""
    try:
        for length in LENGTHS:
            text = _rendered(run, length, 1.0)
            if _size(text) <= SIZE:
                return text
        bare = _size(_rendered(run, length, 0.0))
        share = (SIZE - bare) / max(1, _size(text) - bare)
        while _size(text) > SIZE:
            if share < LEAST:
                raise UnrefuseError("the record of this run is too large for a page")
            share *= 0.9
            text = _rendered(run, length, share)
    except (KeyError, ValueError, TypeError, AttributeError, TemplateError) as error:
        raise UnrefuseError(
            f"this version of unrefuse cannot show the record of this run: {first_line(error)}"
        ) from error
    return text


def _size(text: str) -> int:
    return len(text.encode())


def _rendered(run: KeptRun, length: int, share: float) -> str:
    environment, style, script = _parts_of_a_page()
    record = dict.fromkeys(OPTIONAL) | run.record
    edit = record["kernel"] is not None
    pairs, floors = _pairs(run.lines, length, share), _floors(record)
    asked = len({line.key for line in run.lines})
    return environment.get_template("report.html.jinja").render(
        record=record,
        style=style,
        script=script,
        policy=_policy(style, script),
        interval=INTERVAL,
        meanings=MEANINGS,
        names=_names(record),
        floors=floors,
        sentences=_sentences(record),
        tables=_tables(record, floors),
        listed=ROWS,
        rates=_rates(record),
        compared=any(name in run.record for name in MEANINGS),
        layers=layer_charts(record) if edit else [],
        front=front_charts(record, run.trials) if edit else [],
        parallel=parallel_chart(record, run.trials) if edit else None,
        chosen=chosen_stage(record) if edit else None,
        trials=len(run.trials),
        drawn=MOST,
        pairs=pairs,
        asked=asked,
        grades=GRADES,
        changes=CHANGES,
        sets=[name for name in ORDER if any(p.line.set == name for p in pairs)],
        topics=sorted({_named(p.line.topic) for p in pairs if p.line.topic})[:ROWS],
        settings=_settings(record),
    )


@cache
def _parts_of_a_page() -> tuple[Environment, Markup, Markup]:
    """What draws a page, its style sheet and its script. All that it prints goes through `visible`,
    then is escaped."""
    templates = files("unrefuse.report") / "templates"
    style, script = (
        Markup((templates / name).read_text(encoding="utf-8"))  # noqa: S704 (our own files)
        for name in ("report.css", "report.js")
    )
    environment = Environment(
        loader=PackageLoader("unrefuse.report"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"fixed": _fixed, "percent": _percent, "named": _named, "count": _count}
    return environment, style, script


def _policy(*parts: str) -> str:
    """A content security policy: nothing from anywhere, and no script and no style but these."""
    kinds = ("style-src", "script-src")
    hashes = (base64.b64encode(hashlib.sha256(p.encode()).digest()).decode() for p in parts)
    directives = "; ".join(f"{kind} 'sha256-{h}'" for kind, h in zip(kinds, hashes, strict=True))
    return f"default-src 'none'; {directives}; base-uri 'none'; form-action 'none'"


def _names(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Of the models, as they were named: the one that was evaluated, or edited, and its original,
    None where a model was evaluated by itself."""
    if models := record.get("models"):
        return {when: models[when]["name"] if when in models else None for when in WHENS}
    model = record["config"]["model"]
    return dict.fromkeys(WHENS, Path(model).name if Path(model).is_absolute() else model)


def _floors(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The floors of retention and of quality, and whether the figures keep them."""
    config = record["config"]
    quality_floor = config["quality_floor"]
    bound = RunConfig(model="x", quality_floor=quality_floor).quality_bound
    floors = {
        "retention": (config["retention_floor"], config["retention_bound"]),
        "quality": (quality_floor, bound),
    }
    return {
        name: {"floor": floor, "bound": least, "kept": e["value"] >= floor and e["low"] >= least}
        for name, (floor, least) in floors.items()
        if (e := record.get(name)) and None not in e.values()
    }


def _sentences(record: Mapping[str, Any]) -> list[str]:
    """What stands under the figures: the test of retention, the shipped prompts, who graded."""
    said = []
    if test := record.get("retention_test"):
        said.append(retention_line(test))
    shipped, retention = record.get("kept_shipped"), record.get("retention")
    if shipped and retention and shipped["n"] not in (0, retention["n"]):
        said.append(
            f"of the shipped keep prompts {shipped['kept']} of {shipped['n']} still refused"
        )
    if weakest := record.get("weakest"):
        said.append(f"weakest kind of harm: {_named(weakest['topic'])}, {_count(weakest)} refused")
    unsure = record.get("unsure")
    if isinstance(unsure, dict):
        unsure = unsure.get("after")
    if unsure is not None:
        said.append(f"the detector is unsure of {unsure:.0%} of the grades")
    if "unjudged" in record:
        said += judge_lines(record)
    return said


def _tables(
    record: Mapping[str, Any], floors: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, Any]], float | None]]:
    """By topic and by language, the lowest share first: removal and retention, with the floor; of a
    model by itself, what it refuses of each set."""
    tables = []
    for part, by in (("by_topic", "topic"), ("by_lang", "language")):
        if shares := record.get(part):
            floor = floors["retention"]["floor"] if "retention" in floors else None
            tables += [
                (f"Removal by {by}: answered now", shares["removal"], None),
                (f"Retention by {by}: still refused", shares["retention"], floor),
            ]
        elif record["rates"]:
            refused = record["rates"]["after"]
            tables += [(f"{name}, by {by}: refused", refused[name][part], None) for name in refused]
    return [
        (said, sorted(rows.items(), key=lambda row: (row[1]["value"], -row[1]["n"])), floor)
        for said, rows, floor in tables
        if rows
    ]


def _rates(record: Mapping[str, Any]) -> list[tuple[str, dict[str, list[int]], dict[str, Any]]]:
    """Per set: refused and asked, and all grades where an evaluation has counted them."""
    counted = record.get("grades") or {}
    return [
        (name, refused, {when: counts.get(name, {}) for when, counts in counted.items()})
        for name, refused in record["refused"].items()
    ]


def _settings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of the configuration is not its default."""
    config = record["config"]
    default = RunConfig(model="x").model_dump(mode="json")
    hidden = {"model", "model_sha256", "prompts_sha256", "kernel"}
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in config.items()
        if name not in hidden and value != default.get(name)
    ]


def _pairs(lines: Sequence[Line], length: int, share: float) -> list[Pair]:
    """Every prompt with its replies, set by set; with a `share` below 1 the first ones of those
    whose grade has changed, then of the others."""
    before = {line.key: line for line in lines if line.when == "before"}
    after = [line for line in lines if line.when == "after"]
    after.sort(key=lambda line: ORDER.index(line.set) if line.set in ORDER else len(ORDER))
    if share < 1:
        same = [line.key in before and before[line.key].grade == line.grade for line in after]
        first = sorted(range(len(after)), key=lambda i: same[i])[: int(share * len(after))]
        after = [after[i] for i in sorted(first)]
    return [_pair(before.get(line.key), line, length) for line in after]


def _pair(before: Line | None, line: Line, length: int) -> Pair:
    texts = [line.prompt, before.reply if before else "", line.reply]
    prompt, first, second = (text[:length] for text in texts)
    parts = differences(first, second) if before else ([], [(second, False)])
    lacking = sum(max(0, len(text) - length) for text in texts)
    return Pair(line, before.grade if before else None, prompt, *parts, lacking)


def _named(text: str) -> str:
    return text if len(text) <= NAMED else f"{text[: NAMED - 1]}…"


def _fixed(value: float | None, digits: int = 2) -> str:
    return number(value, f".{digits}f")


def _percent(value: float | None) -> str:
    """A share as a number of SVG or a meter, 0 to 100."""
    return "0" if value is None else f"{100 * min(max(value, 0), 1):.1f}"


def _count(e: Mapping[str, Any]) -> str:
    return "–" if e["value"] is None else f"{round(e['value'] * e['n'])} of {e['n']:.0f}"

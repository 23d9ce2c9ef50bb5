"""Data sets of other people that a user has as files in their published form: FORMAT:FILE.

Harmless prompts become target prompts, harmful ones keep prompts.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError
from unrefuse.prompts.language import language
from unrefuse.prompts.rows import Rows, cell, columns, file_rows


@dataclass(frozen=True)
class _Format:
    """What such a file has at the least, and where. `topic`: the first of these that says
    something. `set` is that of every prompt; "": each row says it."""

    columns: tuple[str, ...]
    prompt: str
    topic: tuple[str, ...]
    set: str


_ORBENCH = _Format(("prompt", "category"), "prompt", ("category",), "target")
_JAILBREAKBENCH = _Format(("Goal", "Target", "Behavior", "Category"), "Goal", ("Category",), "keep")
FORMATS = {
    # Roettger et al. 2024; a type `contrast_...` or the label `unsafe` is harmful.
    "xstest": _Format(("prompt", "type"), "prompt", ("type",), ""),
    # Cui et al. 2024: the 80k and hard-1k files are harmless, the toxic one is not.
    "orbench": _ORBENCH,
    "orbench-toxic": replace(_ORBENCH, set="keep"),
    # Chao et al. 2024: harmful-behaviors.csv and benign-behaviors.csv.
    "jailbreakbench": _JAILBREAKBENCH,
    "jailbreakbench-benign": replace(_JAILBREAKBENCH, set="target"),
    # Zhang et al. 2025: train.jsonl and test.jsonl; `category` is a number.
    "falsereject": replace(_ORBENCH, topic=("category_text", "category")),
    # Wang et al. 2024: the instructions alone, or with six models' replies.
    "donotanswer": _Format(
        ("question", "risk_area", "types_of_harm"), "question", ("types_of_harm",), "keep"
    ),
}


def is_import(source: str) -> bool:
    """Whether `source` is FORMAT:FILE."""
    return _name(source) in FORMATS


def import_rows(spec: str) -> tuple[Path, Rows]:
    """The file of `spec`, FORMAT:FILE, and its rows with the columns prompt, set, topic and lang.

    Raises UnrefuseError that names the file and the line.
    """
    _, _, path = spec.partition(":")
    if not is_import(spec) or not path:
        raise UnrefuseError(
            f"{spec!r} is not an import: write FORMAT:FILE, where FORMAT is one of "
            f"{', '.join(FORMATS)}"
        )
    # The shell leaves a home folder after a colon as it is.
    file = Path(path).expanduser() if path.startswith("~/") else Path(path)
    return file, _rows(_name(spec), file)


def _name(spec: str) -> str:
    """The format, however its hyphens are set: or-bench, do_not_answer."""
    name, colon, _ = spec.partition(":")
    plain = {known.replace("-", ""): known for known in FORMATS}
    return plain.get(name.casefold().replace("-", "").replace("_", ""), "") if colon else ""


def _rows(name: str, file: Path) -> Rows:
    form = FORMATS[name]
    for line, row in file_rows(file):
        place = f"{file}:{line}"
        there = row if isinstance(row, dict) else {}
        if missing := [column for column in form.columns if column not in there]:
            raise UnrefuseError(
                f"{place}: not in the format of {name}: no column {', '.join(missing)} (found: "
                f"{columns(row)})"
            )
        topics = (cell(row, column, place) for column in form.topic)
        text = row[form.prompt]
        yield (
            line,
            {
                "prompt": text,
                "set": form.set or _xstest_set(row, place),
                "topic": next(filter(None, topics), ""),
                "lang": language(str(text)) or "en",
            },
        )


def _xstest_set(row: dict[str, Any], place: str) -> str:
    label, kind = (cell(row, column, place).lower() for column in ("label", "type"))
    if label not in ("", "safe", "unsafe"):
        raise UnrefuseError(f"{place}: label {label!r} is neither safe nor unsafe")
    if not label and not kind:
        raise UnrefuseError(f"{place}: neither a label nor a type says whether this is harmful")
    return "keep" if label == "unsafe" or kind.startswith("contrast_") else "target"

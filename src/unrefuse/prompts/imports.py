"""Data sets of other people that a user has as CSV files: XSTest, OR-Bench, JailbreakBench.

Harmless prompts become target prompts, harmful ones keep prompts, all for the test split.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unrefuse.errors import UsageError
from unrefuse.prompts.sets import Prompt, file_rows, limited


@dataclass(frozen=True)
class _Format:
    """`set` is that of every prompt in such a file; "": each row says it."""

    columns: tuple[str, ...]
    prompt: str
    topic: str
    set: str


ORBENCH = _Format(("prompt", "category"), "prompt", "category", "target")
JAILBREAKBENCH = _Format(("Goal", "Target", "Behavior", "Category"), "Goal", "Category", "keep")
FORMATS = {
    # Roettger et al. 2024; a type `contrast_...` or the label `unsafe` is harmful.
    "xstest": _Format(("prompt", "type"), "prompt", "type", ""),
    # Cui et al. 2024: the 80k and hard-1k files are harmless, the toxic one is not.
    "orbench": ORBENCH,
    "orbench-toxic": replace(ORBENCH, set="keep"),
    # Chao et al. 2024: harmful-behaviors.csv and benign-behaviors.csv.
    "jailbreakbench": JAILBREAKBENCH,
    "jailbreakbench-benign": replace(JAILBREAKBENCH, set="target"),
}


def read_import(spec: str, limit: int | None = None) -> list[Prompt]:
    """The prompts of `spec`, FORMAT:FILE, without exact duplicates; at most `limit` of target
    prompts and twice as many of keep ones. Raises UsageError that names the file and the line."""
    name, _, path = spec.partition(":")
    if name not in FORMATS or not path:
        raise UsageError(f"{spec!r} is no import: FORMAT:FILE, FORMAT one of {', '.join(FORMATS)}")
    form, file = FORMATS[name], Path(path)
    if file.suffix.lower() != ".csv":
        raise UsageError(f"{file}: a {name} file is a .csv file")
    prompts: dict[str, Prompt] = {}
    for line, row in file_rows(file):
        missing = [column for column in form.columns if column not in row]
        if missing:
            there = ", ".join(str(column) for column in row if column)
            raise UsageError(
                f"{file} is not in the form of {name}: no column {', '.join(missing)} (there: "
                f"{there})"
            )
        text = (row[form.prompt] or "").strip()
        if not text:
            raise UsageError(f"{file}:{line}: the prompt is empty")
        kind = form.set or _xstest_set(row, f"{file}:{line}")
        topic = (row[form.topic] or "").strip()
        prompts.setdefault(text, Prompt(text, kind, topic, "en", "test", str(file), line))
    if not prompts:
        raise UsageError(f"{file}: no prompts in it")
    found = list(prompts.values())
    return limited(found, limit) if limit else found


def _xstest_set(row: dict[str, Any], place: str) -> str:
    label = (row.get("label") or "").strip().lower()
    if label not in ("", "safe", "unsafe"):
        raise UsageError(f"{place}: label {label!r} is neither safe nor unsafe")
    harmful = label == "unsafe" or (row["type"] or "").startswith("contrast_")
    return "keep" if harmful else "target"

"""Past runs: the folders in the user's folder that hold the record of a run, or its report."""

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from unrefuse.errors import UnrefuseError, first_line
from unrefuse.report.lines import RECORD

REPORT = "report.html"


class _Figure(BaseModel):
    value: float | None
    low: float | None
    high: float | None
    n: int


class _Config(BaseModel):
    model: str


class _Record(BaseModel):
    saved: bool
    removal: _Figure
    retention: _Figure
    quality: _Figure
    config: _Config


@dataclass(frozen=True)
class PastRun:
    """One past run. `record` is empty where there is only a report, or a record that says nothing:
    `fault` then says why."""

    folder: Path
    when: datetime
    record: dict[str, Any]
    report: Path | None
    fault: str = ""

    @property
    def key(self) -> str:
        """What stands for the run in a link: a folder's name may hold anything."""
        return hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]


def past_runs(folder: Path) -> list[PastRun]:
    """The runs directly in `folder`, newest first. Raises UnrefuseError for one that cannot be
    read."""
    if not folder.exists():
        return []
    try:
        there = [each for each in folder.iterdir() if each.is_dir() and each.name[:1] != "."]
    except OSError as error:
        raise UnrefuseError(f"cannot read {folder}: {error.strerror}") from None
    found = [run for each in there if (run := _run(each))]
    return sorted(found, key=lambda run: run.when, reverse=True)


def _run(folder: Path) -> PastRun | None:
    record, report = folder / RECORD, folder / REPORT
    there = [file for file in (record, report) if file.is_file()]
    if not there:
        return None
    when = datetime.fromtimestamp(there[0].stat().st_mtime)
    shown = report if report in there else None
    if record not in there:
        return PastRun(folder, when, {}, shown)
    try:
        read = _Record.model_validate_json(record.read_bytes())
    except (OSError, ValidationError) as error:
        return PastRun(folder, when, {}, shown, f"{RECORD}: {first_line(error)}")
    return PastRun(folder, when, read.model_dump(), shown)

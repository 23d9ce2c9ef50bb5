"""What a run keeps in its folder for those who look at it later: written, and read again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError, first_line
from unrefuse.metrics.record import TRIALS, read_trials, write_whole
from unrefuse.metrics.transcripts import FILE, Line, lines_of, read_transcripts, to_text
from unrefuse.report.evaluation import REPORT
from unrefuse.report.lines import RECORD
from unrefuse.report.results import Result, write_json


@dataclass(frozen=True)
class KeptRun:
    """The object of run.json or evaluation.json, the replies, and the trials of a tuning."""

    record: dict[str, Any]
    lines: Sequence[Line]
    trials: Sequence[dict[str, Any]]


def write_record(result: Result, folder: Path) -> None:
    """Writes run.json, and transcripts.jsonl with the replies behind its figures."""
    write_json(result, folder / RECORD)
    model = result.config.model
    lines = lines_of(result.measurement, (model, f"{model}, edited"))
    write_whole(folder / FILE, to_text(lines))


def read_run(folder: Path) -> KeptRun:
    """The run whose record lies in `folder`. Runs of earlier versions kept no replies."""
    file = next((f for name in (RECORD, REPORT) if (f := folder / name).exists()), None)
    if file is None:
        raise UnrefuseError(f"there is no record of a run in {folder}: no {RECORD}, no {REPORT}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError("no object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UnrefuseError(f"cannot read {file}: {first_line(error)}") from None
    lines = read_transcripts(folder) if (folder / FILE).exists() else []
    places = [place for place in (folder, folder / "tuning") if (place / TRIALS).exists()]
    return KeptRun(record, lines, read_trials(places[0]) if places else [])

"""Every step of `unrefuse diagnose`: the run read again, its findings, and the next run."""

import shlex
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unrefuse.config import load_config
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.runs import BESIDE, Found, find_run
from unrefuse.metrics.record import read_trials
from unrefuse.report.findings import Seen, Tried
from unrefuse.report.recorded import RunRecord, TrialRecord, read_record, trusting
from unrefuse.report.results import Result
from unrefuse.report.steps import Finding
from unrefuse.search.score import Score


@dataclass(frozen=True)
class Diagnosis:
    """A run read again, where the next one goes, and what was found, the most pressing first."""

    found: Found
    record: RunRecord | None
    out: Path
    findings: list[Finding]

    def commands(self, finding: Finding) -> list[str]:
        """As a shell takes them."""
        return [shlex.join(step.words(self.found.file)) for step in finding.steps]

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.found.out),
            "record": str(self.found.file),
            "saved": bool(self.record and self.record.saved),
            "findings": [
                {
                    "name": f.name,
                    "fact": f.fact,
                    "evidence": f.evidence,
                    "do": f.do,
                    "commands": self.commands(f),
                }
                for f in self.findings
            ],
        }


def diagnose(path: Path, out: Path | None = None) -> Diagnosis:
    """The findings on the run at `path`; `out` is where the next run goes, RUN-2 where it is None.

    Raises UnrefuseError where there is no run, and for a record or trials that are damaged.
    """
    found = find_run(path)
    config = load_config(found.file)
    record = read_record(found.file) if found.ended else None
    trials = [trial for folder in found.trials for trial in _trials(folder)]
    goal = out or _next(found.out)
    seen = Seen(config, record, trials, found.only_tunes, found.out, goal)
    return Diagnosis(found, record, goal, seen.findings())


def apply(diagnosis: Diagnosis) -> Result | None:
    """Runs the commands of the first finding that has any, by configurations and not by their text.
    None where no finding has one.

    Raises UnrefuseError where the record would have a model's own code run, or replies sent to a
    server, and as the commands do.
    """
    from unrefuse.jobs.analyze import analyze, write_kernel
    from unrefuse.jobs.edit import run_edit, run_tune
    from unrefuse.jobs.save import check_new, check_out

    steps = next((f.steps for f in diagnosis.findings if f.steps), ())
    file = diagnosis.found.file
    result: Result | None = None
    for step in steps:
        config = step.config(file)
        if asked := trusting(config):
            raise UnrefuseError(
                f"{file} sets {' and '.join(asked)}, which --apply does not take from a file: if "
                "you trust it, run the printed command yourself"
            )
        if step.command == "analyze":
            check_out(diagnosis.out)
            kernel_out = Path(step.options["kernel_out"])
            check_new(kernel_out)
            topic = step.options["topic"]
            write_kernel(analyze(config, topic), topic, config.kernel.threshold, kernel_out)
        else:
            result = (run_tune if step.command == "tune" else run_edit)(config)
    return result


def _trials(folder: Path) -> list[Tried]:
    """Raises UnrefuseError for a damaged one."""
    trials = []
    for row in read_trials(folder):
        try:
            trial = TrialRecord.model_validate(row)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise UnrefuseError(f"{folder}: a trial is damaged at {where}") from None
        score = Score(**trial.score.model_dump())
        trials.append(Tried(trial.trial, trial.parameters, score))
    return trials


def _next(folder: Path) -> Path:
    """Where the next run goes: beside this one, under a name that is not there."""
    numbers = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(
        out
        for out in numbers
        if not any(out.with_name(f"{out.name}{end}").exists() for end in ("", *BESIDE))
    )

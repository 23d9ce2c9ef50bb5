"""Every step of `unrefuse reproduce`: a run once more, and whether bytes or behaviour match."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig, load_config, validated
from unrefuse.edits.plan import Plan, plan_hash
from unrefuse.edits.recipe import read_plan
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.edit import run_edit, run_tune
from unrefuse.jobs.evaluate import Options, run_evaluate
from unrefuse.jobs.runs import Found, find_run
from unrefuse.jobs.save import apply_plan, check_out
from unrefuse.metrics.transcripts import Line
from unrefuse.models.checkpoint import SUMS, checkpoint_files, checkpoint_hash, not_given
from unrefuse.models.device import choose_device
from unrefuse.progress import stderr
from unrefuse.report.lines import LIBRARIES, RECORD
from unrefuse.report.recorded import RunRecord, read_record, trusting
from unrefuse.report.results import Result
from unrefuse.report.seal import recorded_sums

SAME_GRADES = 0.95  # of the replies, where behaviour is said to match
HUB = ("run.json", "SHA256SUMS", "tuning/*")


@dataclass(frozen=True)
class Reproduction:
    """A run beside the one that its record tells of.

    `plan` and `weights` say whether the bytes are the same (weights: None where a run saves none).
    `figures` hold the two values of each figure, and whether the new one lies in the interval of
    the old. Where bytes differ, `grades` is the share of test prompts whose replies have one grade,
    with n, and `kl` the divergence of the new model from the old one, in nats.
    """

    saved: bool
    plan: bool
    weights: bool | None
    figures: dict[str, dict[str, Any]]
    versions: dict[str, tuple[str | None, str]]
    grades: tuple[float, int] | None = None
    kl: float | None = None

    @property
    def matches(self) -> str | None:
        """What is the same: "bytes", or else "behaviour", or None."""
        if self.saved and self.plan and self.weights is not False:
            return "bytes"
        inside = all(figure["inside"] for figure in self.figures.values())
        alike = self.grades is not None and self.grades[0] >= SAME_GRADES
        return "behaviour" if self.saved and inside and alike else None

    def to_json(self) -> dict[str, Any]:
        return {
            "matches": self.matches,
            "saved": self.saved,
            "plan_is_the_same": self.plan,
            "weights_are_the_same": self.weights,
            "figures": self.figures,
            "versions_that_differ": {
                name: {"recorded": old, "here": new} for name, (old, new) in self.versions.items()
            },
            "same_grades": self.grades and {"value": self.grades[0], "n": self.grades[1]},
            "kl": self.kl,
        }


def reproduce(
    run: str,
    model: str | None = None,
    out: Path | None = None,
    trust: Mapping[str, bool] | None = None,
) -> Reproduction:
    """Repeats `run`, a folder or what `publish` put on the hub, from its run.json, on the same
    weights and prompts: both are held to the hashes in it before the model loads.

    `model` is where the original lies here, if not where the record says. The result goes to `out`,
    or to a folder that is removed. `trust` names settings that the record may switch on: see
    `recorded.trusting`. Raises UnrefuseError for a record that saved nothing, and as `run_edit`.
    """
    if out is not None:
        check_out(out)
    found = _find(run)
    record = read_record(found.file)
    if not record.saved:
        raise UnrefuseError(f"{run} saved nothing, so there is nothing to reproduce")
    folder = found.file.parent
    plan, _ = read_plan(folder)
    config = _config(found, model, trust or {})
    versions = _versions(record)
    for name, (old, new) in versions.items():
        stderr.print(f"{name} was {old or 'not recorded'}, and is {new} here")
    with tempfile.TemporaryDirectory(prefix="unrefuse-") as made:
        goal = out or Path(made) / "run"
        config = config.model_copy(update={"out": goal})
        result = (run_tune if found.only_tunes else run_edit)(config)
        same = Reproduction(
            result.saved,
            result.saved and _same_plan(plan, goal),
            None if found.only_tunes or not result.saved else _same_weights(folder, goal),
            _compared(record, result),
            versions,
        )
        if same.matches or not result.saved:
            return same
        return _with_behaviour(same, found, config, goal, Path(made))


def _find(run: str) -> Found:
    """The record in a folder here, or on the hub: then without its weights."""
    if Path(run).exists():
        found = find_run(Path(run))
        if not found.ended or found.file.name != RECORD:
            raise UnrefuseError(f"{run} is not a finished run: name the folder that the run wrote")
        return found
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(run, allow_patterns=list(HUB)))
    except Exception as error:  # the hub client raises its own, httpx's and the system's kinds
        raise not_given(run, error) from None
    return find_run(folder)


def _config(found: Found, model: str | None, trust: Mapping[str, bool]) -> RunConfig:
    config = load_config(found.file, model=model)
    for key in ("model_sha256", "prompts_sha256"):
        if getattr(config, key) is None:
            raise UnrefuseError(
                f"{found.file} does not say which model and prompts the run used: {key} is missing"
            )
    change: dict[str, Any] = {"judge": "builtin", "judge_label": None, "judge_input": None}
    config = config.model_copy(update=change)  # a judge of the record's naming is not asked
    asked = [name for name in trusting(config) if not trust.get(name)]
    if asked:
        options = " ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise UnrefuseError(f"{found.file} runs code that comes with a model: if you trust it, "
                            f"add {options}")  # fmt: skip
    try:
        choose_device(config.device)
    except UnrefuseError as error:
        stderr.print(f"{error}; another device is used, so bytes can differ")
        config = config.model_copy(update={"device": "auto", "device_map": None})
    return validated(config)


def _versions(record: RunRecord) -> dict[str, tuple[str | None, str]]:
    from importlib.metadata import version
    from platform import machine, python_version

    here = {name: version(name) for name in LIBRARIES}
    here |= {"python": python_version(), "machine": machine()}
    recorded = record.versions
    return {
        name: (recorded.get(name), new) for name, new in here.items() if recorded.get(name) != new
    }


def _same_plan(plan: Plan, goal: Path) -> bool:
    return plan_hash(plan) == plan_hash(read_plan(goal)[0])


def _same_weights(old: Path, new: Path) -> bool:
    """By SHA256SUMS of the old one, which a run on the hub comes with; else by its weights."""
    if not (old / SUMS).is_file():
        return checkpoint_hash(old) == checkpoint_hash(new)
    recorded, fresh = recorded_sums(old), recorded_sums(new)
    names = {file.relative_to(new).as_posix() for file in checkpoint_files(new)}
    return all(recorded.get(name) == fresh[name] for name in names)


def _compared(record: RunRecord, result: Result) -> dict[str, dict[str, Any]]:
    """Old and new value of each figure; one of a search split is not of a test split."""
    measured = (result.detected or result.measurement).figures()
    return {
        name: {
            "recorded": old.value,
            "now": measured[name]["value"],
            "difference": measured[name]["value"] - old.value,
            "inside": result.split == record.split
            and old.low <= measured[name]["value"] <= old.high,
        }
        for name, old in record.detected().items()
    }


def _with_behaviour(
    same: Reproduction, found: Found, config: RunConfig, goal: Path, made: Path
) -> Reproduction:
    """The two models asked the same test prompts. A run without its weights gets them by its plan,
    from the original."""
    folders = []
    for name, source in (("old", found.file.parent), ("new", goal)):
        if not (source / "config.json").is_file():
            edited = made / name
            apply_plan(source, config.model_copy(update={"out": edited}))
            source = edited
        folders.append(source)
    old, new = folders
    plain = {"model": str(new), "revision": None, "out": made / "evaluation", "tune": None,
             "model_sha256": None, "prompts_sha256": None}  # fmt: skip
    again = run_evaluate(config.model_copy(update=plain), Options(against=str(old)))
    kl = again.to_json().get("kl")
    return replace(same, grades=_same_grades(again.lines), kl=kl and kl["value"])


def _same_grades(lines: list[Line]) -> tuple[float, int]:
    before = {line.key: line.grade for line in lines if line.when == "before"}
    pairs = [(before[x.key], x.grade) for x in lines if x.when == "after" and x.key in before]
    return sum(a == b for a, b in pairs) / len(pairs), len(pairs)

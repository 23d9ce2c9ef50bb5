"""What a tuning leaves: the kernel as a profile file, the exact plan beside it, and its trials."""

import shutil
from pathlib import Path

from unrefuse.config import RunConfig
from unrefuse.edits.plan import Plan, load_plan, plan_hash, save_plan
from unrefuse.edits.recipe import check_made_for
from unrefuse.errors import UnrefuseError
from unrefuse.jsontext import json_text
from unrefuse.metrics.floors import KEY, Measured
from unrefuse.metrics.record import SETTINGS, TRIALS, write_whole
from unrefuse.report.results import Result
from unrefuse.search.stage import Stage

KERNEL, PLAN = "kernel.json", "plan.safetensors"


def save_tuned(stage: Stage, result: Result, folder: Path, fingerprint: str) -> None:
    """Writes kernel.json, which `--kernel` takes, and plan.safetensors, which it names.

    The kernel's weights say how strong each layer is edited; the plan says along what, and has the
    record of its measurement. `fingerprint` is that of the original's checkpoint. Raises
    ValidationError for a `result` that is not that of a test split.
    """
    made_for = {"model": result.config.model, "fingerprint": fingerprint}
    record = {KEY: record_of(stage.plan, result).model_dump_json()}
    save_plan(stage.plan, folder / PLAN, made_for | record)
    figures = {"split": result.split, **result.measurement.figures()}
    kernel = stage.kernel.describe(stage.multiplier)
    text = json_text(kernel | made_for | {"plan": PLAN, "figures": figures}, indent=2)
    write_whole(folder / KERNEL, text + "\n")


def record_of(plan: Plan, result: Result) -> Measured:
    """The record of the measurement of a plan, for `measured.read_measured`."""
    config, found = result.config, result.measurement
    return Measured.model_validate(
        {
            "plan_sha256": plan_hash(plan),
            "preserve_norm": config.preserve_norm,
            "split": result.split,
            "reply_tokens": config.reply_tokens,
            "retention": found.kept,
            "shipped": found.kept_shipped,
            "quality": found.quality.value,
            "quality_low": found.quality.low,
            "retention_floor": config.retention_floor,
            "retention_bound": config.retention_bound,
            "quality_floor": config.quality_floor,
            "quality_bound": config.quality_bound,
        }
    )


def keep_record(run: Path, folder: Path) -> None:
    """Copies the record of a run, without what only going on with it would need."""
    folder.mkdir()
    for name in (SETTINGS, TRIALS, KERNEL, PLAN):
        shutil.copyfile(run / name, folder / name)


def plan_for(file: Path, config: RunConfig, model: Path) -> tuple[Plan, RunConfig]:
    """The plan in `file`, to be measured on the model in the folder `model`, and the configuration
    with its method. Raises UnrefuseError where it was made for other weights than these, or cannot
    keep the rows' length though it is to."""
    plan, made_for = load_plan(file)
    try:
        check_made_for(made_for, model, file)
    except UnrefuseError as error:
        raise UnrefuseError(
            f"{error}; or remove the line 'plan' from the kernel file to use only its weights"
        ) from None
    method = "ablate" if all(edit.of_output for edit in plan) else "selective"
    if config.preserve_norm and method != "ablate":
        raise UnrefuseError(
            f"{file} is a selective edit, and --preserve-norm needs the method ablate"
        )
    return plan, config.model_copy(update={"method": method})

"""What a tuning leaves: the kernel as a profile file, the exact plan beside it, and its trials."""

import shutil
from pathlib import Path

from unrefuse.config import RunConfig
from unrefuse.edit.plan import Plan, load_plan, save_plan
from unrefuse.errors import UsageError
from unrefuse.jsontext import json_text
from unrefuse.report.results import Result
from unrefuse.search.record import SETTINGS, TRIALS, write_whole
from unrefuse.search.stage import Stage

KERNEL, PLAN, FRONT = "kernel.json", "plan.safetensors", "front.png"


def save_tuned(stage: Stage, result: Result, folder: Path, fingerprint: str) -> None:
    """Writes kernel.json, which `--kernel` takes, and plan.safetensors, which it names.

    The kernel's weights say how strong each layer is edited; the plan says along what.
    `fingerprint` is that of the original's checkpoint, for `unrefuse apply`.
    """
    made_for = {
        "model": result.config.model,
        "model_sha256": result.config.model_sha256 or "",
        "fingerprint": fingerprint,
        "preserve_norm": str(result.config.preserve_norm),
    }
    save_plan(stage.plan, folder / PLAN, made_for)
    figures = {"split": result.split, **result.measurement.figures()}
    kernel = stage.kernel.describe(stage.multiplier)
    text = json_text(kernel | made_for | {"plan": PLAN, "figures": figures}, indent=2)
    write_whole(folder / KERNEL, text + "\n")


def keep_record(run: Path, folder: Path) -> None:
    """Copies the record of a run, without what only going on with it would need."""
    folder.mkdir()
    for name in (SETTINGS, TRIALS, FRONT, KERNEL, PLAN):
        shutil.copyfile(run / name, folder / name)


def plan_for(file: Path, config: RunConfig) -> tuple[Plan, RunConfig]:
    """The plan in `file`, and the configuration with its method. Raises UsageError where it was
    made for other weights than these, or cannot keep the rows' length though it is to."""
    plan, made_for = load_plan(file)
    if made_for.get("model_sha256") != config.model_sha256:
        raise UsageError(
            f"{file} was tuned on other weights ({made_for.get('model')}): tune on these, or take "
            "the line 'plan' out of the kernel file to use its weights alone"
        )
    method = "ablate" if all(edit.of_output for edit in plan) else "selective"
    if config.preserve_norm and method != "ablate":
        raise UsageError(f"{file} is a selective edit, which cannot keep the rows' length")
    return plan, config.model_copy(update={"method": method})

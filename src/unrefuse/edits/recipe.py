"""An edit that was made before, to be applied again: where it lies, and for whose weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unrefuse.edits.disk.header import fingerprint
from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import checkpoint_files

if TYPE_CHECKING:
    from unrefuse.edits.plan import Plan

# Of a saved model, in a folder of its own: vLLM loads every *.safetensors beside the weights.
PLAN = Path("tuning/plan.safetensors")
ADVICE = "name a folder that `unrefuse edit` or `unrefuse tune` wrote, or its plan.safetensors"


def find_plan(path: Path) -> Path:
    """The file of a plan: `path` itself, or that of a tuning run or of a saved model's folder.

    Raises UnrefuseError where there is none.
    """
    for file in (path, path / PLAN.name, path / PLAN):
        if file.is_file():
            return file
    raise UnrefuseError(f"there is no plan in {path}: {ADVICE}")


def read_plan(path: Path) -> tuple["Plan", dict[str, str]]:
    """The plan that `find_plan` finds at `path`, and its metadata.

    Raises UnrefuseError where there is none, or none that can be read.
    """
    from unrefuse.edits.plan import load_plan

    file = find_plan(path)
    try:
        return load_plan(file)
    except UnrefuseError as error:
        raise UnrefuseError(f"{error}; {ADVICE}") from None


def check_made_for(metadata: Mapping[str, str], model: Path, file: Path) -> None:
    """Raises UnrefuseError unless the plan in `file` was made for the weights in the folder
    `model`: an edit was measured on the weights that it was made for, and says nothing of
    others."""
    wanted = metadata.get("fingerprint")
    if wanted is None:
        raise UnrefuseError(
            f"the plan {file} does not say which weights it was made for: make a new one"
        )
    if wanted != fingerprint(checkpoint_files(model)):
        raise UnrefuseError(
            f"the plan {file} was made for other weights ({metadata.get('model')}) than those in "
            f"{model}: measure an edit of that model itself, with `unrefuse edit`"
        )

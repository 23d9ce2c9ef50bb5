"""Back to the original's weights: what an adapter adds is taken out of an edited checkpoint."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from unrefuse.edits.adapters.lora import load_factors, share_along
from unrefuse.edits.disk.copying import copy_files, copy_others
from unrefuse.edits.disk.stored import overwrite_tensors, read_tensor, tensor_files
from unrefuse.edits.recipe import read_plan
from unrefuse.edits.weights import check_fits, planned_tensors
from unrefuse.errors import UnrefuseError
from unrefuse.progress import track


def revert_checkpoint(edited: Path, adapter: Path, out: Path) -> list[str]:
    """Writes `edited` into the folder `out`, which must exist, without what `adapter` adds to it.

    `W - B A` in float32, cast once: the original's weights within the rounding of the edited ones.
    Tensors keep their names, dtypes and files. Returns the names of the changed ones. Raises
    UnrefuseError where `edited` is not the adapter's model with this edit at this strength.
    """
    factors = load_factors(adapter)
    plan, metadata = read_plan(adapter)
    try:
        along = {module: float(value) for module, value in json.loads(metadata["along"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UnrefuseError(
            f"the plan beside {adapter} does not record the original: export the adapter again"
        ) from None
    files = tensor_files(edited)
    edits = planned_tensors(plan, files)
    copy_files(edited, dict.fromkeys(files.values()), out)
    copy_others(edited, out)
    error = allowed = 0.0
    for name, (edit, axis) in track(edits.items(), "reverting", len(edits)):
        tensor = read_tensor(files[name], name)
        check_fits(name, tensor.shape, edit, axis)
        if edit.module not in factors:
            raise UnrefuseError(f"the adapter has nothing for {edit.module}, which its plan edits")
        if edit.module not in along:
            raise UnrefuseError(f"{edit.module} is stored transposed, which `revert` can't undo")
        a, b = factors[edit.module]
        added = b @ a
        if tensor.shape != added.shape:
            raise UnrefuseError(
                f"the adapter is for another model: {edit.module} has the shape "
                f"{tuple(tensor.shape)} in the model and {tuple(added.shape)} in the adapter"
            )
        reverted = tensor.float() - added
        error += (share_along(reverted, a, b) - along[edit.module]) ** 2
        # A weight is rounded by up to half a unit in its last place. Where what is added is less
        # than that, it is lost; elsewhere the errors are independent, and six times what they add
        # up to along B A is allowed.
        weight = tensor.float()
        unit = torch.finfo(tensor.dtype).eps / 2 + 8 * torch.finfo(torch.float32).eps
        lost = float(added[added.abs() < unit * weight.abs()].square().sum())
        allowed += (6 * unit * float((added * weight).norm()) + lost) ** 2
        file = out / files[name].relative_to(edited)
        overwrite_tensors(file, {name: reverted.to(tensor.dtype)})
    if not error <= allowed:
        raise UnrefuseError(
            f"{edited} does not hold the edit of {adapter} at this strength: with the edit taken "
            f"out, it is {math.sqrt(error / allowed):.2g} times further from the original than "
            "rounding explains"
        )
    return list(edits)


def largest_difference(reverted: Path, original: Path, names: Sequence[str]) -> tuple[float, float]:
    """Over the tensors `names`: the largest difference, and the share of entries that are equal.

    Raises UnrefuseError where `original` has other tensors.
    """
    ours, theirs = tensor_files(reverted), tensor_files(original)
    largest, equal, entries = 0.0, 0, 0
    for name in names:
        if name not in theirs:
            raise UnrefuseError(f"{original} has no tensor {name}: is it the original?")
        a, b = read_tensor(ours[name], name), read_tensor(theirs[name], name)
        if a.shape != b.shape:
            raise UnrefuseError(f"{name} has another shape in {original}: is it the original?")
        largest = max(largest, float((a.float() - b.float()).abs().max()))
        equal, entries = equal + int((a == b).sum()), entries + a.numel()
    return largest, equal / entries

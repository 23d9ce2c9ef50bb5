"""A written checkpoint beside its original: what was to change has changed, and nothing else."""

from pathlib import Path

import torch
from torch import Tensor

from unrefuse.edits.plan import Plan
from unrefuse.edits.weights import edit_tensor, has_rows, planned_tensors
from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import checkpoint_files
from unrefuse.models.weights import lazy_weights
from unrefuse.progress import stderr, track


def check_written(
    source: Path, out: Path, plan: Plan, preserve_norm: bool = False, whole: bool = True
) -> list[str]:
    """The planned tensors in which the edit is lost, since it rounds to nothing in their dtype.

    Each tensor of the checkpoint in `out` is compared with that of `source`, one at a time: those
    of the plan with `edit_tensor` of it, all others byte for byte. Without `whole` only the former
    are read, and only asked whether they have changed. Tensors of zeros, which an edit may leave
    so, do not count. Tells of what is lost. Raises UnrefuseError for a tensor that is not what it
    should be, and where all of the edit is lost.
    """
    ours, theirs = (lazy_weights(checkpoint_files(f), "pread") for f in (source, out))
    if differ := sorted(ours.keys() ^ theirs.keys()):
        raise UnrefuseError(f"{differ[0]} is in only one of {source} and {out}")
    edits = planned_tensors(plan, ours)
    names = list(ours if whole else edits)
    moved, lost, dtypes = 0, list[str](), set[str]()
    for name in track(names, "checking", len(names)):
        before: Tensor = ours[name][...]
        after: Tensor = theirs[name][...]
        wanted = before
        if whole and name in edits:
            wanted = edit_tensor(before, *edits[name], preserve_norm and has_rows(name))
        if whole and not _same(wanted, after):
            raise UnrefuseError(f"{out} is not the edited model: {name} is wrong")
        if name in edits and not _same(before, after):
            moved += 1
        elif name in edits and before.any():
            lost.append(name)
            dtypes.add(str(before.dtype).removeprefix("torch."))
    if lost:
        message = (
            f"the edit is too small for {' and '.join(sorted(dtypes))} in {len(lost)} of the "
            f"{len(edits)} tensors that the plan edits, so these do not change"
        )
        if not moved:
            raise UnrefuseError(f"{message}: use a stronger edit, or the model in a finer dtype")
        stderr.print(f"{message}: {lost[0]} …")
    return lost


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same bytes: NaN is NaN, and -0 is not 0."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    flat = [t.contiguous().reshape(-1) for t in (a, b)]
    wide = all(t.nbytes % 8 == 0 and t.storage_offset() == 0 for t in flat)  # five times as fast
    return torch.equal(*(t.view(torch.int64 if wide else torch.uint8) for t in flat))

"""The arithmetic of the edit on weights: one function, in fixed blocks, for memory and for disk.

Sums in float32 depend on the shape of a product and on the number of threads that compute it. One
route for all, of the same blocks and one thread each, is what gives the same bytes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from unrefuse.edits.plan import MatrixEdit
from unrefuse.errors import UnrefuseError

COLUMNS = 256  # of a block: at d_model 4096, 4 MiB in float32, about a core's cache
_lock = threading.Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes with one thread, in threads that begin there too."""
    with _lock:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def slabs(tensor: Tensor, axis: int) -> Iterator[tuple[Tensor, int]]:
    """The parts of a weight or bias that are edited each for itself, and their axis of `d_model`.

    Fused experts `(experts, ...)` are as many; all else is one.
    """
    if tensor.ndim == 3 and axis > 0:
        yield from ((expert, axis - 1) for expert in tensor)
    else:
        yield tensor, axis


@torch.no_grad()
def edit_slab(slab: Tensor, edit: MatrixEdit, axis: int, preserve_norm: bool = False) -> None:
    """Edits one contiguous part of `slabs`, of any float dtype, in place: `W <- W - D A`, or where
    the edit reads the output `W <- W - D A W`.

    With `preserve_norm` each row of W `(d_model, d_in)` is then scaled back to its length. (Lai,
    "Norm-Preserving Biprojected Abliteration", 2025, keeps row lengths too, and takes the
    direction out of the rows' unit vectors: where rows differ in length, that leaves more of
    it in what is written. Here it is taken out of W, and of second order is left.) A row of zeros
    after the edit stays one. To be called within `one_thread`. Raises UnrefuseError where the
    edited weights do not fit in float16.
    """
    rows = slab.movedim(axis, 0)
    rows = rows.reshape(len(rows), -1) if axis == 0 else rows
    blocks = _Blocks(rows, edit)
    scale = _row_scale(rows, blocks) if preserve_norm else None
    for columns, block in blocks.edited():
        columns.copy_(block if scale is None else block.mul_(scale))
    if slab.dtype == torch.float16 and not bool(torch.isfinite(slab).all()):
        raise UnrefuseError(
            f"the edited weights of {edit.module} are beyond float16, which ends at 65504: edit a "
            "copy of the model in bfloat16 or float32"
        )


def _row_scale(rows: Tensor, blocks: "_Blocks") -> Tensor:
    """What brings each row of the edited matrix back to its length, `(d_model, 1)`."""
    after = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for _, block in blocks.edited():
        after += block.square().sum(1).double()
    before = torch.zeros_like(after)
    for columns in torch.split(rows, COLUMNS, 1):
        before += columns.float().square().sum(1).double()
    return torch.where(after > 0, (before / after).sqrt(), 1.0).float().unsqueeze(1)


class _Blocks:
    """A matrix by blocks of columns, each edited in the one float32 buffer that all share."""

    def __init__(self, rows: Tensor, edit: MatrixEdit) -> None:
        self.rows, self.of_output = rows, edit.of_output
        self.write, self.read = edit.write.to(rows.device), edit.read.to(rows.device)
        width = min(COLUMNS, rows.shape[1])
        self.buffer = torch.empty(len(rows) * width, dtype=torch.float32, device=rows.device)

    def edited(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each block of the matrix, and its edited values: good until the next one."""
        reads = torch.split(self.read, COLUMNS, 1)
        for number, columns in enumerate(torch.split(self.rows, COLUMNS, 1)):
            block = self.buffer[: columns.numel()].view(columns.shape)
            block.copy_(columns)
            read = self.read @ block if self.of_output else reads[number].contiguous()
            block.addmm_(self.write, read, alpha=-1)
            yield columns, block

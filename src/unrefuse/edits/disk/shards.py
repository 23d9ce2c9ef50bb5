"""The edit on disk: shards are copied by the kernel, and only the plan's tensors are read."""

import errno
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import Tensor

from unrefuse.edits.columns import edit_slab, one_thread
from unrefuse.edits.disk.copying import (
    CHUNK,
    WORKERS,
    copy_bytes,
    copy_files,
    copy_others,
    make_target,
)
from unrefuse.edits.plan import MatrixEdit, Plan
from unrefuse.edits.weights import check_fits, edit_tensor, has_rows, planned_tensors
from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import INDEX, checkpoint_tensors
from unrefuse.models.header import Stored, Tensors
from unrefuse.models.quantized import check_full
from unrefuse.models.weights import read_pickle
from unrefuse.progress import track

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

Edits = Mapping[str, tuple[MatrixEdit, int]]


def write_checkpoint(
    source: Path,
    plan: Plan,
    out: Path,
    preserve_norm: bool = False,
    link: bool = False,
    device: torch.device | str = "cpu",
    copied: Mapping[Path, int] = MappingProxyType({}),
) -> torch.dtype:
    """Writes the edited checkpoint of `source` into the folder `out`, which must exist.

    The bytes of the edited tensors are computed in float32 on `device`, as `edit_tensor` does, a
    matrix at a time, and written where the old ones were; all other bytes of a shard are copied.
    Every file keeps its place in the folder. Those that are no weights (tokenizer, chat templates,
    configs) are copied whole; weights that are not the checkpoint's are left out, and said to be.
    With `link` the former, and shards in which nothing changes, become hard links. Of the shards
    in `copied` that many bytes are there already (see `copying.HeadStart`). A pickle checkpoint is
    loaded file by file and becomes safetensors. Returns the coarsest dtype among the edited
    tensors. Raises UnrefuseError, before it writes, where a planned tensor is not there or has
    another `d_model`, and where weights are quantised.

    It does not ask how the plan was measured: `run_edit` measures what this wrote before it gives
    it to anyone, and `apply_plan` has asked `measured.read_measured`.
    """
    headers = checkpoint_tensors(source)
    check_full(source, headers)
    if next(iter(headers)).suffix == ".bin":
        dtype = _convert(source, headers, plan, out, preserve_norm)
    else:
        stored = {name: tensor for header in headers.values() for name, tensor in header.items()}
        edits = planned_tensors(plan, stored)
        for name, (edit, axis) in edits.items():
            _check(name, stored[name], edit, axis)
        jobs: list[Callable[[], None]] = []
        buffers = threading.local()
        for file, header in headers.items():
            if link and not header.keys() & edits.keys():
                copy_files(source, [file], out, link)
            else:
                target = out / file.relative_to(source)
                done = copied[file] if file in copied else make_target(file, target)
                jobs += _copies(file, target, header, edits, done)
                jobs += _edits(file, target, header, edits, done, preserve_norm, device, buffers)
        _run(jobs)
        dtype = max(
            (FLOATS[stored[name].dtype] for name in edits), key=lambda d: torch.finfo(d).eps
        )
    copy_others(source, out, link)
    return dtype


def _check(name: str, stored: Stored, edit: MatrixEdit, axis: int) -> None:
    if stored.dtype not in FLOATS:
        raise UnrefuseError(
            f"{name} is stored as {stored.dtype}, which is quantised: an edit needs full weights "
            f"({', '.join(FLOATS)})"
        )
    check_fits(name, stored.shape, edit, axis)


def _run(jobs: list[Callable[[], None]]) -> None:
    """All jobs, a few at once. On an exception, Ctrl-C too, no further one begins."""
    with one_thread():
        pool = ThreadPoolExecutor(WORKERS)
        try:
            futures = [pool.submit(job) for job in jobs]
            for future in track(as_completed(futures), "writing", len(futures)):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _copies(
    file: Path, target: Path, header: Mapping[str, Stored], edits: Edits, done: int
) -> Iterator[Callable[[], None]]:
    """The jobs that copy into `target`, from the offset `done` on, all but the edited tensors."""
    edited = sorted((header[n].begin, header[n].end) for n in header.keys() & edits.keys())
    begins = [0, *(end for _, end in edited)]
    ends = [*(begin for begin, _ in edited), file.stat().st_size]
    for begin, end in zip(begins, ends, strict=True):
        for at in range(max(begin, done), end, CHUNK):
            yield partial(copy_bytes, file, target, at, min(CHUNK, end - at))


def _edits(
    file: Path,
    target: Path,
    header: Mapping[str, Stored],
    edits: Edits,
    done: int,
    preserve_norm: bool,
    device: torch.device | str,
    buffers: threading.local,
) -> Iterator[Callable[[], None]]:
    """The jobs that edit the tensors of one shard: a job for each slab."""
    for name, stored in header.items():
        if name not in edits:
            continue
        edit, axis = edits[name]
        shape, parts = stored.shape, 1
        if len(shape) == 3 and axis > 0:  # fused experts: see columns.slabs
            parts, shape, axis = shape[0], shape[1:], axis - 1
        size = prod(shape) * FLOATS[stored.dtype].itemsize
        for part in range(parts):
            slab = Stored(stored.dtype, shape, stored.begin + part * size,
                         stored.begin + (part + 1) * size)  # fmt: skip
            yield partial(_edit, file, target, slab, slab.end <= done, edit, axis,
                          preserve_norm and has_rows(name), device, buffers)  # fmt: skip


def _edit(
    file: Path,
    target: Path,
    stored: Stored,
    there: bool,
    edit: MatrixEdit,
    axis: int,
    preserve_norm: bool,
    device: torch.device | str,
    buffers: threading.local,
) -> None:
    """Reads one slab, edits it, and writes it over its old bytes in `target`, if these are `there`.

    A thread reads into the buffer of its last slab: fresh memory would cost as much as the edit.
    """
    size = stored.end - stored.begin
    if len(getattr(buffers, "bytes", ())) < size:
        buffers.bytes = torch.empty(size, dtype=torch.uint8)
    held: Tensor = buffers.bytes[:size]
    slab = held.view(FLOATS[stored.dtype]).view(stored.shape)
    data = held.numpy().data
    with file.open("rb", buffering=0) as old:
        old.seek(stored.begin)
        read = 0
        while read < size:  # a single call reads at most 2 GiB
            done = old.readinto(data[read:])
            if not done:
                raise OSError(errno.EIO, f"{file} ended early")
            read += done
    # On ext4 a write into a hole takes ten times as long as a copy by the kernel and a write over
    # that: 0.33 s beside 0.05 for 117 MB.
    if not there:
        copy_bytes(file, target, stored.begin, size)
    moved = slab.to(device)
    edit_slab(moved, edit, axis, preserve_norm)
    slab.copy_(moved)
    with target.open("r+b") as new:
        new.seek(stored.begin)
        new.write(data)


def _convert(
    source: Path, headers: Tensors, plan: Plan, out: Path, preserve_norm: bool
) -> torch.dtype:
    """A pickle checkpoint as edited safetensors, with an index where it has several files."""
    edits = planned_tensors(plan, [name for header in headers.values() for name in header])
    where: dict[str, str] = {}
    size, dtypes = 0, set[torch.dtype]()
    for header in headers.values():
        for name in header.keys() & edits.keys():
            _check(name, header[name], *edits[name])
    for file in track(headers, "writing", len(headers)):
        # Tied tensors share memory, which safetensors does not write.
        tensors = {name: t.clone().contiguous() for name, t in read_pickle(file).items()}
        for name in tensors.keys() & edits.keys():
            keep = preserve_norm and has_rows(name)
            tensors[name] = edit_tensor(tensors[name], *edits[name], keep)
            dtypes.add(tensors[name].dtype)
        shard = file.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        target = out / file.relative_to(source).with_name(shard)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, target, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, target.relative_to(out).as_posix())
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(headers) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

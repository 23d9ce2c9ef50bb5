"""A checkpoint's tensors on disk, read and written over one at a time."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import checkpoint_files, checkpoint_tensors
from unrefuse.models.header import read_header
from unrefuse.models.quantized import BY_EDIT, check_full


def tensor_files(folder: Path) -> dict[str, Path]:
    """Where each tensor of a checkpoint is stored. Reads headers only.

    Raises UnrefuseError for a folder that is no checkpoint, a missing or damaged file, a pickle,
    and quantised weights, whose numbers are not the model's.
    """
    for file in checkpoint_files(folder):
        if file.suffix == ".bin":
            raise UnrefuseError(f"{file} is a pickle: save the model as safetensors first")
    tensors = checkpoint_tensors(folder)
    check_full(folder, tensors, BY_EDIT)
    return {name: file for file, names in tensors.items() for name in names}


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, on the CPU; nothing else of the file is read."""
    with safe_open(file, framework="pt") as shard:
        tensor: Tensor = shard.get_tensor(name)
    return tensor


def overwrite_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors` over those of the same name, shape and dtype in a safetensors file.

    The file keeps its header and its size.
    """
    header = read_header(file)
    with file.open("r+b") as data:
        for name, tensor in tensors.items():
            values = tensor.contiguous().view(torch.uint8).numpy().reshape(-1)
            assert len(values) == header[name].end - header[name].begin, name
            data.seek(header[name].begin)
            data.write(values.data)

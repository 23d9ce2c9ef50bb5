"""What lies on disk: the plan of a run, and a checkpoint's tensors, read one at a time."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unrefuse.edit.plan import MatrixEdit
from unrefuse.errors import UsageError, first_line
from unrefuse.models.load import checkpoint_files

PLAN = "plan.safetensors"


def find_plan(path: Path) -> Path:
    """The plan's file: `path` itself, or in the folder of a run, or in a saved model's tuning.

    Raises UsageError where there is none.
    """
    for file in (path, path / PLAN, path / "tuning" / PLAN):
        if file.is_file():
            return file
    raise UsageError(
        f"there is no plan in {path}: name a {PLAN}, or a folder that unrefuse wrote one to"
    )


def tensor_files(folder: Path) -> dict[str, Path]:
    """Where each tensor of a checkpoint is stored. Reads headers only.

    Raises UsageError for a folder that is no checkpoint, a missing or damaged file, and a pickle.
    """
    where: dict[str, Path] = {}
    for file in checkpoint_files(folder):
        if file.suffix == ".bin":
            raise UsageError(f"{file} is a pickle: save the model as safetensors first")
        try:
            with safe_open(file, framework="pt") as shard:
                where |= dict.fromkeys(shard.keys(), file)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"cannot read {file}: {first_line(error)}") from None
    return where


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, on the CPU; nothing else of the file is read."""
    with safe_open(file, framework="pt") as shard:
        tensor: Tensor = shard.get_tensor(name)
    return tensor


def overwrite_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors` over those of the same name, shape and dtype in a safetensors file.

    The file keeps its header and its size: 8 bytes with the header's length, the header in JSON,
    then the data, at offsets that the header gives (the format's page in safetensors' docs).
    """
    with file.open("r+b") as data:
        length = int.from_bytes(data.read(8), "little")
        header = json.loads(data.read(length))
        for name, tensor in tensors.items():
            begin, end = header[name]["data_offsets"]
            values = tensor.contiguous().view(torch.uint8).numpy().reshape(-1)
            assert len(values) == end - begin, name
            data.seek(8 + length + begin)
            data.write(values.data)


def check_fits(name: str, tensor: Tensor, edit: MatrixEdit, axis: int) -> None:
    """Raises UsageError where the plan's directions are not as long as what `tensor` writes."""
    if tensor.shape[axis] != len(edit.basis):
        raise UsageError(
            f"the plan is of another model: its directions have {len(edit.basis)} entries, and "
            f"{name} writes {tensor.shape[axis]}"
        )

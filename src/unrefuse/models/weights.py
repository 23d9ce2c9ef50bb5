"""The tensors in weight files, read one by one. Of pickles: tensors alone, and no code is run."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from unrefuse.errors import UnrefuseError
from unrefuse.models.files import check_file
from unrefuse.models.header import Stored

# The names of safetensors for what full weights and their buffers are; others keep torch's.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


def read_pickle(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a pickle file by name; on the device `meta` their data is not read.

    Raises UnrefuseError for a damaged file and for one that holds anything else.
    """
    check_file(file)
    try:
        mapped = device != "meta" and zipfile.is_zipfile(file)
        found = torch.load(file, map_location=device, weights_only=True, mmap=mapped)
    except Exception:  # bytes that are no pickle make the unpickler raise anything
        raise UnrefuseError(
            f"cannot read {file}: it is damaged, or holds more than tensors, which could run code; "
            "save the model as safetensors"
        ) from None
    for name, tensor in found.items() if isinstance(found, dict) else [(type(found), None)]:
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise UnrefuseError(
                f"{file} holds {name!r}, which is not a tensor: save the model as safetensors"
            )
    return dict(found)


def read_pickle_header(file: Path) -> dict[str, Stored]:
    """What `read_header` gives for a safetensors file; where the bytes lie is not known."""
    return {
        name: Stored(
            DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")),
            tuple(tensor.shape),
            0,
            0,
        )
        for name, tensor in read_pickle(file, "meta").items()
    }


def lazy_weights(files: Iterable[Path], backend: str = "mmap") -> dict[str, Any]:
    """What gives each tensor of weight files, as `[...]` of it; `backend` as in safetensors."""
    weights: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".bin":
            weights |= read_pickle(file)
        else:
            shard: Any = safe_open(file, framework="pt", backend=backend)
            weights |= {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
    return weights

"""Quantised checkpoints: refused, or dequantised once to a full copy in the user's cache."""

import hashlib
import re
import shutil
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError, raised_as
from unrefuse.models.cache import cached
from unrefuse.models.files import read_object
from unrefuse.models.header import Tensors
from unrefuse.progress import stderr

# The kinds that are rounded weights with scales and nothing else, which transformers undoes; what
# it looks for beside a weight, or in place of it.
KINDS = {"fp8": ("", "_scale_inv"), "mxfp4": ("_blocks", "_scales")}
FULL = ("F64", "F32", "F16", "BF16")
WHOLE = ("I64", "BOOL", "C64")  # counters, masks, rotations: no format keeps weights in these
NO_WEIGHTS = re.compile(r"(bias|ids?|index|mask)$")  # masks and tables in smaller integers
SCALES = ("_scale", "_scales", "_scale_inv")
SIDECAR = "hf_quant_config.json"  # of NVIDIA's ModelOpt


def quantization(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint's config says of its quantisation, or None where it says nothing.

    Raises UnrefuseError where there is no config, or none that can be read.
    """
    config = read_object(folder / "config.json")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), dict) and part[key]:
                return dict(part[key])
    return None


# What to do for a command that makes no full copy itself.
BY_EDIT = "take the full copy that `unrefuse edit --dequantize` makes"


def check_full(folder: Path, tensors: Tensors, undo: str = "add --dequantize") -> None:
    """Raises UnrefuseError for a quantised checkpoint: rounded weights can't take a small change.
    `undo` is what to do where transformers can make them full again.

    It is told from its config, from the file that ModelOpt leaves, and from its tensors: without
    a word about it, rounded weights would be read without their scales.
    """
    found, do = None, "name the model it was made of"
    if (folder / "config.json").is_file() and (config := quantization(folder)):
        found = str(config.get("quant_method", "of an unnamed kind"))
        if _undone(found, tensors):
            do = undo
    elif (folder / SIDECAR).is_file():
        stated = read_object(folder / SIDECAR).get("quantization")
        found = stated.get("quant_algo") if isinstance(stated, dict) else None
    if found := found or _rounded(tensors):
        raise UnrefuseError(
            f"the weights in {folder} are quantised ({found}), and an edit needs full weights: {do}"
        )


def _rounded(tensors: Tensors) -> str | None:
    """The first tensor that holds rounded weights, and how that shows."""
    stored = {name: tensor for file in tensors.values() for name, tensor in file.items()}
    for name, tensor in stored.items():
        small = tensor.dtype not in (*FULL, *WHOLE)
        matrix = len(tensor.shape) > 1 and not NO_WEIGHTS.search(name)
        if small and (matrix or "F" in tensor.dtype.upper()):
            return f"{name} is stored as {tensor.dtype}"
        for ending in SCALES:
            if name.endswith(ending) and name.removesuffix(ending) in stored:
                return f"{name} is the scale of a weight"
    return None


def _undone(kind: str, tensors: Tensors) -> bool:
    """Whether transformers finds a scale for every rounded weight of a checkpoint of this kind."""
    if kind not in KINDS:
        return False
    weight, scale = KINDS[kind]
    stored = {name: tensor for file in tensors.values() for name, tensor in file.items()}
    rounded = [
        name
        for name, tensor in stored.items()
        if tensor.dtype not in (*FULL, *WHOLE) and not name.endswith((*SCALES, "bias"))
    ]
    return all(
        name.endswith(weight) and f"{name.removesuffix(weight)}{scale}" in stored
        for name in rounded
    )


def full_weights(
    folder: Path,
    tensors: Tensors,
    others: Iterable[Path],
    auto: Any,
    hf_config: Any,
    trust_remote_code: bool,
    cache: Path | None = None,
) -> Path:
    """The folder of a full copy of an FP8 or MXFP4 checkpoint, made at the first call.

    `tensors` are those of its weight files, `others` its other files, `auto` the class that loads
    it with `hf_config`. Raises UnrefuseError where the kind is another, and for what goes wrong
    while it is loaded and written.
    """
    found = quantization(folder)
    if not found or not _undone(str(found.get("quant_method")), tensors):
        check_full(folder, tensors)
        return folder
    import torch
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    from unrefuse.models.assemble import assemble

    settings_class = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}[found["quant_method"]]
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in tensors:
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    dtype = hf_config.dtype or torch.bfloat16
    settings = {k: v for k, v in found.items() if k not in ("quant_method", "dequantize")}

    name = f"full-{digest.hexdigest()[:12]}"

    def make(new: Path) -> None:
        stderr.print(f"dequantising to {new.with_name(name)}")
        loaded, info = assemble(
            tensors,
            auto,
            hf_config,
            dtype,
            trust_remote_code,
            quantization_config=settings_class(dequantize=True, **settings),
        )
        if missing := sorted(info["missing_keys"]):
            raise UnrefuseError(f"{folder}: the checkpoint has no {missing[0]}")
        # A model that was loaded so would be quantised again when saved; a new one is not.
        with torch.device("meta"):
            plain = type(loaded)(loaded.config)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(new)
        for file in others:
            path = file.relative_to(folder)
            if path.name not in ("config.json", SIDECAR) and not path.name.endswith(".index.json"):
                (new / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, new / path)

    with raised_as(f"cannot dequantise {folder}"):
        return cached(name, _numbers(tensors) * dtype.itemsize, make, cache)


def _numbers(tensors: Tensors) -> int:
    """How many weights a quantised checkpoint of one of the KINDS has: of MXFP4, two a byte."""
    return sum(
        prod(tensor.shape) * (2 if name.endswith("_blocks") else 1)
        for file in tensors.values()
        for name, tensor in file.items()
        if not name.endswith(SCALES)
    )

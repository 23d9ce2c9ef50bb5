"""The edit on disk: a checkpoint is copied shard by shard, and only the plan's tensors change."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unrefuse.edit.plan import Plan
from unrefuse.edit.weights import edit_tensor, planned_tensors
from unrefuse.models.load import INDEX, PICKLE_INDEX, checkpoint_files
from unrefuse.progress import track

WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def write_checkpoint(source: Path, plan: Plan, out: Path) -> torch.dtype:
    """Writes the edited checkpoint of `source` into the folder `out`, which must exist.

    Tensors keep their names, dtypes and shards; each edited one is computed in float32. All other
    files at the top of `source` (tokenizer, chat template, configs) are copied byte for byte. A
    pickle checkpoint becomes safetensors. Returns the coarsest dtype among the edited tensors.
    Raises UsageError where a planned tensor is not there.
    """
    files = checkpoint_files(source)
    edits = planned_tensors(plan, (name for file in files for name in _names(file)))
    where: dict[str, str] = {}
    size, dtypes = 0, set()
    for file in track(files, "writing", len(files)):
        tensors, metadata = _read_shard(file)
        for name in tensors.keys() & edits.keys():
            tensors[name] = edit_tensor(tensors[name], *edits[name])
            dtypes.add(tensors[name].dtype)
        shard = _safetensors_name(file.name)
        save_file(tensors, out / shard, metadata=metadata)
        where |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1 and not (source / INDEX).exists():
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file in _other_files(source):
        shutil.copyfile(file, out / file.name)
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _names(file: Path) -> list[str]:
    if file.suffix == ".bin":
        return list(torch.load(file, map_location="meta", weights_only=True))
    with safe_open(file, framework="pt") as shard:
        return list(shard.keys())


def _read_shard(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if file.suffix == ".bin":
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        # Tied tensors share memory, which safetensors does not write.
        return {name: t.clone().contiguous() for name, t in loaded.items()}, {"format": "pt"}
    with safe_open(file, framework="pt") as shard:
        tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
        return tensors, shard.metadata() or {"format": "pt"}


def _safetensors_name(name: str) -> str:
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def _other_files(source: Path) -> Iterator[Path]:
    for file in sorted(source.iterdir()):
        weights = file.name.endswith(WEIGHT_ENDINGS) or file.name == PICKLE_INDEX
        # The original's card and run.json would describe another model.
        if file.is_file() and not weights and file.name not in ("README.md", "run.json"):
            yield file

"""A checkpoint on disk: where it is, whether it is whole, what is in it. No model is loaded."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unrefuse.config import RunConfig
from unrefuse.errors import UsageError, first_line
from unrefuse.models.quantized import check_full

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def find_folder(config: RunConfig) -> Path:
    """The local folder of `config.model`: the demo, a folder, or a hub model, downloaded.

    Raises UsageError for a name that is none of these.
    """
    name, folder = config.model, Path(config.model).expanduser()
    if name == "demo":
        from unrefuse.models.demo import demo_model

        return demo_model()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{name} is a file: name the folder of the model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
    patterns += ["*.bin"] if config.allow_pickle else []
    patterns += ["*.py"] if config.trust_remote_code else []
    try:
        return Path(snapshot_download(name, revision=config.revision, allow_patterns=patterns))
    except HFValidationError:
        raise UsageError(f"no such folder, and no name of a hub model: {name}") from None
    except Exception as error:  # the hub client raises its own, httpx's and the system's kinds
        raise UsageError(
            f"no such folder, and the hub does not give {name!r}: {first_line(error)}"
        ) from None


def check_checkpoint(folder: Path, config: RunConfig) -> None:
    """Reads the config and the header of every shard. Raises UsageError; loads no weights."""
    check_full(folder)
    for file in checkpoint_files(folder):
        if not file.is_file():
            raise UsageError(f"the checkpoint is not whole: {file} is missing")
        if file.suffix == ".bin":
            if not config.allow_pickle:
                raise UsageError(
                    f"{file} is a pickle, which can run code; if you trust it: --allow-pickle"
                )
            continue
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{file} is truncated or damaged: {first_line(error)}") from None


def checkpoint_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, in order, from its index or by the standard names."""
    for index, single in ((INDEX, SINGLE), (PICKLE_INDEX, PICKLE)):
        if (folder / index).is_file():
            try:
                shards = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError, UnicodeDecodeError) as error:
                raise UsageError(f"{folder / index} is damaged: {first_line(error)}") from None
            return [folder / name for name in sorted(set(shards.values()))]
        if (folder / single).is_file():
            return [folder / single]
    raise UsageError(f"{folder} is no model: there are no weights ({SINGLE}) in it")


def tensor_names(file: Path) -> list[str]:
    """The names of the tensors in a weight file; their data is not read."""
    if file.suffix == ".bin":
        import torch

        return list(torch.load(file, map_location="meta", weights_only=True))
    with safe_open(file, framework="numpy") as shard:
        return list(shard.keys())


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 over the bytes of the weight files, in order."""
    digest = hashlib.sha256()
    for file in checkpoint_files(folder):
        with file.open("rb") as data:
            while chunk := data.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()

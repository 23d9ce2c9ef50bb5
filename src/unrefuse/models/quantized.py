"""Quantised checkpoints: refused, or dequantised once to a full copy in the user's cache."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from unrefuse.errors import UsageError, first_line
from unrefuse.progress import stderr

# The kinds that are rounded weights with scales and nothing else, which transformers undoes.
KINDS = ("fp8", "mxfp4")


def quantization(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint's config says of its quantisation, or None for full weights.

    Raises UsageError where there is no config, or none that can be read.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found = config.get("quantization_config")
    except FileNotFoundError:
        raise UsageError(f"{folder} is no model: there is no config.json in it") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"cannot read {file}: {first_line(error)}") from None
    return found if isinstance(found, dict) else None


def check_full(folder: Path) -> None:
    """Raises UsageError for a quantised checkpoint: rounded weights can't take a small change."""
    if found := quantization(folder):
        kind = found.get("quant_method", "of an unnamed kind")
        do = "add --dequantize" if kind in KINDS else "name the model it was made of"
        raise UsageError(
            f"the weights in {folder} are quantised ({kind}), and an edit needs full weights: {do}"
        )


def full_weights(
    folder: Path,
    files: Iterable[Path],
    auto: Any,
    trust_remote_code: bool,
    cache: Path | None = None,
) -> Path:
    """The folder of a full copy of an FP8 or MXFP4 checkpoint, made at the first call.

    `files` are its weight files, `auto` the class that loads it. Raises UsageError where the kind
    is another, and for what goes wrong while it is loaded and written.
    """
    found = quantization(folder)
    if not found or found.get("quant_method") not in KINDS:
        check_full(folder)
        return folder
    import torch
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    settings_class = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}[found["quant_method"]]
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        if file.is_file():  # a missing one is said by the loader
            stat = file.stat()
            digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    full = (cache or user_cache_path("unrefuse")) / f"full-{digest.hexdigest()[:12]}"
    if full.is_dir():
        return full
    stderr.print(f"dequantising to {full}", highlight=False, soft_wrap=True)
    full.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".full-", dir=full.parent))
    settings = {k: v for k, v in found.items() if k not in ("quant_method", "dequantize")}
    try:
        loaded, info = auto.from_pretrained(
            folder,
            output_loading_info=True,
            dtype="auto",
            trust_remote_code=trust_remote_code,
            quantization_config=settings_class(dequantize=True, **settings),
        )
        if missing := sorted(info["missing_keys"]):
            raise UsageError(f"{folder}: the checkpoint has no {missing[0]}")
        # A model that was loaded so would be quantised again when saved; a new one is not.
        with torch.device("meta"):
            plain = type(loaded)(loaded.config)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(temporary)
        for file in folder.iterdir():
            text = file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model", ".py")
            new = not (temporary / file.name).exists() and ".index." not in file.name
            if text and new:
                shutil.copyfile(file, temporary / file.name)
        temporary.replace(full)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise UsageError(f"cannot dequantise {folder}: {first_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return full

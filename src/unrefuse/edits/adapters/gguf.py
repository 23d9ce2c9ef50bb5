"""The edit in the forms that llama.cpp reads: a LoRA adapter, and a control vector."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
from torch import Tensor
from transformers import PretrainedConfig

from unrefuse.edits.adapters.lora import Adapter
from unrefuse.errors import UnrefuseError

# llama.cpp's name of an architecture, where its conversion (convert_hf_to_gguf.py) neither
# permutes nor rescales the matrices that write into the residual stream, so that their factors
# can be taken over as they are.
ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "granite": "granite",
    "llama": "llama",
    "mistral": "llama",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}


def gguf_architecture(config: PretrainedConfig) -> str:
    """llama.cpp's name of the model's architecture. Raises UnrefuseError for one not known here."""
    if config.model_type not in ARCHITECTURES:
        raise UnrefuseError(
            f"export to GGUF does not support the architecture {config.model_type!r}; "
            f"it supports: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[config.model_type]


def save_gguf_lora(adapter: Adapter, config: PretrainedConfig, file: Path) -> None:
    """Writes an adapter as llama.cpp's convert_lora_to_gguf.py does, in float32.

    llama.cpp multiplies by alpha / rank: here 1. Raises UnrefuseError for a module that has no name
    in GGUF, a bias, and experts.
    """
    architecture = gguf_architecture(config)
    key = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(key, config.num_hidden_layers)
    adapter.check_linear("a GGUF adapter")
    names = {module: known.get_name(module) for module in adapter.factors}
    if missing := [module for module, name in names.items() if name is None]:
        raise UnrefuseError(f"GGUF has no name for {missing[0]}")
    with _writer(file, architecture) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter.rank))
        for module, (a, b) in adapter.factors.items():
            writer.add_tensor(f"{names[module]}.weight.lora_a", a.contiguous().numpy())
            writer.add_tensor(f"{names[module]}.weight.lora_b", b.contiguous().numpy())


def save_control_vector(vectors: Tensor, config: PretrainedConfig, file: Path) -> None:
    """Writes `vectors` `(layers, d_model)`, in the residual stream, as a control vector.

    llama.cpp adds `direction.N` to the output of block N, counted from 0, and allows none for
    block 0: the first row is left out.
    """
    with _writer(file, "controlvector") as writer:
        writer.add_string("controlvector.model_hint", gguf_architecture(config))
        writer.add_int32("controlvector.layer_count", len(vectors) - 1)
        for layer, vector in enumerate(vectors[1:].float(), 1):
            writer.add_tensor(f"direction.{layer}", vector.cpu().contiguous().numpy())


@contextmanager
def _writer(file: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    writer = gguf.GGUFWriter(file, architecture)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

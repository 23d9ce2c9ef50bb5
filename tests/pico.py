"""Tiny random models of the real classes, with a byte-level tokenizer and a chat template."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from unrefuse.config import RunConfig
from unrefuse.models.architectures import ARCHITECTURES
from unrefuse.models.load import Model

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|user|>", "<|assistant|>", "<|end|>"]


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    raw = Tokenizer(bpe)
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(SPECIAL)
    result = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    result.chat_template = template
    return result


MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
        "attention_out_multiplier": 0.5,
        "ssm_out_multiplier": 0.7,
    },
    "gpt_oss": MOE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "flex_olmo": MOE,
    "granite": {"residual_multiplier": 0.3},
    "mixtral": MOE,
    "olmoe": MOE,
    "qwen2_5_vl": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    },
    "qwen2_moe": MOE,
    "qwen3_moe": MOE | {"mlp_only_layers": [0]},  # a dense first layer
    "qwen3_next": MOE
    | {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "full_attention_interval": 2,
    },
}
# Vision-language models: the options of what sees, and of the whole.
VISION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        {},
    ),
    "qwen2_5_vl": (
        {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
        {
            "image_token_id": 250,
            "video_token_id": 251,
            "vision_start_token_id": 252,
            "vision_end_token_id": 253,
        },
    ),
}
MODELS = sorted((set(ARCHITECTURES) - {"qwen2_5_vl_text"}) | set(VISION))


def network(model_type: str = "llama", layers: int = 3, seed: int = 0) -> PreTrainedModel:
    """A random model whose norm gains and biases are not the identity."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": 256 + len(SPECIAL),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "eos_token_id": 258,
        "pad_token_id": 258,
        "bos_token_id": None,
    } | OPTIONS.get(model_type, {})
    auto: Any = AutoModelForCausalLM
    if model_type in VISION:
        vision, whole = VISION[model_type]
        options = {"text_config": options, "vision_config": vision} | whole
        auto = AutoModelForImageTextToText
    config = CONFIG_MAPPING[model_type](**options)
    model = auto.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def save(folder: Path, model_type: str = "llama", layers: int = 3, **options: object) -> Path:
    """A pico model as a Hugging Face folder."""
    network(model_type, layers).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def in_folders(folder):
    """Moves each shard into a folder of its own, where all have the same name."""
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    for i, file in enumerate(sorted(set(found["weight_map"].values()))):
        (folder / f"part{i}").mkdir()
        (folder / file).rename(folder / f"part{i}" / "w.safetensors")
        for name, at in found["weight_map"].items():
            if at == file:
                found["weight_map"][name] = f"part{i}/w.safetensors"
    index.write_text(json.dumps(found))


def loaded(model_type: str = "llama", layers: int = 3, batch_size: int = 4) -> Model:
    return Model(network(model_type, layers), tokenizer(), Path("pico"), "pico", batch_size)


def run_config(model: str, **settings: object) -> RunConfig:
    return RunConfig.model_validate(
        {"model": model, "dtype": "float32", "device": "cpu"} | settings
    )

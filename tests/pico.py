"""Tiny random models of the real classes, with a byte-level tokenizer and a chat template."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from unrefuse.config import RunConfig
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


def network(model_type: str = "llama", layers: int = 3, seed: int = 0) -> PreTrainedModel:
    """A random model whose norm gains and biases are not the identity."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](
        vocab_size=256 + len(SPECIAL),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        eos_token_id=258,
        pad_token_id=258,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def save(folder: Path, model_type: str = "llama", layers: int = 3, **options: object) -> Path:
    """A pico model as a Hugging Face folder."""
    network(model_type, layers).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def loaded(model_type: str = "llama", layers: int = 3, batch_size: int = 4) -> Model:
    return Model(network(model_type, layers), tokenizer(), Path("pico"), "pico", batch_size)


def run_config(model: str, **settings: object) -> RunConfig:
    return RunConfig.model_validate(
        {"model": model, "dtype": "float32", "device": "cpu"} | settings
    )

"""Loading: a checked checkpoint becomes a network on its device, with a batch size that fits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from unrefuse.config import THINKING_TOKENS, RunConfig
from unrefuse.errors import UnrefuseError, raised_as
from unrefuse.models.architectures import same_name
from unrefuse.models.assemble import assemble, read_generation
from unrefuse.models.checkpoint import (
    check_checkpoint,
    check_whole,
    find_folder,
    other_files,
)
from unrefuse.models.device import check_finite, choose_device, choose_dtype, free_memory
from unrefuse.models.discover import describe, discover
from unrefuse.models.header import Tensors
from unrefuse.models.quantized import full_weights
from unrefuse.models.stream import Stream, stream_network
from unrefuse.models.tokenizer import end_of_turn, load_tokenizer
from unrefuse.models.writers import check_architecture, is_known, text_config
from unrefuse.progress import stderr
from unrefuse.prompts.chat import (
    SAMPLE,
    ChatError,
    Messages,
    check_ids,
    encode,
    opened_thinking,
    thinking_tags,
)
from unrefuse.prompts.thinking import may_think


@dataclass(eq=False)
class Model:
    """A loaded chat model with its tokenizer and the checkpoint folder that it came from.

    With a `stream` the blocks of its network are on disk, and come into memory one by one. Where it
    thinks, it does so for at most `thinking_tokens` tokens before a reply. Its `batch_size` becomes
    smaller where a batch does not fit in memory.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    name: str
    batch_size: int
    stream: Stream | None = None
    thinking_tokens: int = THINKING_TOKENS

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def layers(self) -> int:
        return int(text_config(self.network).num_hidden_layers)

    def encode(self, prompts: Sequence[str], before: Messages = ()) -> list[list[int]]:
        """`chat.encode` with the model's tokenizer and embeddings. Raises ChatError."""
        places = getattr(text_config(self.network), "max_position_embeddings", None)
        return encode(self.tokenizer, prompts, before, _rows(self.network), places)

    @cached_property
    def thinking(self) -> str:
        """What of a reply stands in the prompt: the tag of a thinking block, or nothing."""
        return opened_thinking(self.tokenizer)

    @cached_property
    def tags(self) -> dict[int, str]:
        """Special tokens that are the tags of a thinking block."""
        return thinking_tags(self.tokenizer)

    def longest(self, reply_tokens: int) -> int:
        """The most tokens that a reply of `reply_tokens` takes with its thoughts, by what the chat
        template lets expect."""
        return reply_tokens + expected_thoughts(self.tokenizer, self.thinking_tokens)


def load_model(config: RunConfig) -> Model:
    """The model of `config.model`, in evaluation mode on its device.

    Raises UnrefuseError for a folder that is no model, a missing or truncated file, weights that
    are not finite or lack a tensor or are quantised, an architecture that is not known unless
    `config.discover` and an experiment shows what to edit, and a base model without a chat
    template.
    """
    folder = find_checkpoint(config)
    return load_folder(folder, config, config.model)


def load_folder(folder: Path, config: RunConfig, name: str) -> Model:
    """The model in `folder`, under the settings of `config`. Raises UnrefuseError; see
    load_model."""
    tensors = check_checkpoint(folder, config)
    hf_config = read_config(folder, config)
    check_architecture(hf_config)
    tokenizer = load_tokenizer(folder, config.trust_remote_code)
    _sample(tokenizer, name)
    ends = end_of_turn(folder, tokenizer)
    device = choose_device(config.device)
    size = sum(file.stat().st_size for file in tensors)
    dtype = choose_dtype(config.dtype, device, size)
    spread = _device_map(tensors, config, device, dtype, name)
    stream, auto, missing = None, auto_class(hf_config), list[str]()
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of tensors that lack is one line below
    try:
        if config.stream:
            network, stream = stream_network(
                list(tensors), auto, hf_config, dtype, device, config.trust_remote_code
            )
        else:
            with raised_as(f"cannot load the model in {folder}"):
                network, info = assemble(
                    tensors,
                    auto,
                    hf_config,
                    dtype,
                    config.trust_remote_code,
                    device_map=spread,
                    ignore_mismatched_sizes=True,  # said below
                )
                if spread is None:
                    network.to(device)
            for tensor, stored, wanted in sorted(info["mismatched_keys"]):
                raise UnrefuseError(
                    f"{name}: {tensor} has the shape {tuple(stored)} in the checkpoint, and "
                    f"{tuple(wanted)} by config.json"
                )
            missing = sorted(info["missing_keys"])
        read_generation(folder, network)
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    if missing:
        raise UnrefuseError(
            f"{name}: the checkpoint has no {missing[0]} ({len(missing)} tensors are missing)"
        )
    for parameter_name, parameter in network.named_parameters():
        if not parameter.is_meta:
            check_finite(parameter, f"{name}: the weights of {parameter_name}", network.dtype)
    network.eval().requires_grad_(False)
    if not is_known(network):
        _discover(network, tensors, config)
    _try_out(network, _sample(tokenizer, name, _rows(network)), folder)
    # The last position of a batch is a strided view, for which torch's bfloat16 linear on a CPU
    # copies the head once per row: 27 s for 32 rows of Qwen2.5-0.5B, where the product takes 0.1.
    network.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: (args[0].contiguous(), *args[1:])
    )
    # Replies are greedy: the sampling settings that a model ships would only warn.
    network.generation_config = GenerationConfig(
        eos_token_id=ends or None, pad_token_id=ends[0] if ends else None
    )
    thoughts = expected_thoughts(tokenizer, config.thinking_tokens)
    batch_size = config.batch_size or choose_batch_size(
        network, config.reply_tokens, 256 + thoughts
    )
    return Model(network, tokenizer, folder, name, batch_size, stream, config.thinking_tokens)


def expected_thoughts(tokenizer: PreTrainedTokenizerBase, budget: int) -> int:
    """The tokens of thoughts that memory is kept for: the budget where the chat template knows of
    thoughts, else none."""
    return budget if may_think(str(tokenizer.chat_template)) else 0


def _rows(network: PreTrainedModel) -> int:
    """Of how many tokens it has embeddings."""
    embeddings: Any = network.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _sample(tokenizer: PreTrainedTokenizerBase, name: str, rows: int | None = None) -> list[int]:
    """The tokens of a prompt. Raises UnrefuseError where no prompt could be asked."""
    try:
        (ids,) = encode(tokenizer, [SAMPLE], rows=rows)
        if rows is not None:  # plain text has special tokens of its own
            check_ids(tokenizer, tokenizer(SAMPLE)["input_ids"], rows)
        return ids
    except ChatError as error:
        raise UnrefuseError(f"{name}: {error}") from error


@torch.inference_mode()
def _try_out(network: PreTrainedModel, ids: list[int], folder: Path) -> None:
    """A forward pass over a prompt, as replies begin: a config may fit the weights and not itself.
    Raises UnrefuseError."""
    inputs, decoder = torch.tensor([ids], device=network.device), network.get_decoder()
    with raised_as(f"the model in {folder} cannot be run"):
        cache = DynamicCache(config=network.config)
        states = decoder(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state
    check_finite(states, f"the states of the model in {folder}", network.dtype)


def _discover(network: PreTrainedModel, tensors: Tensors, config: RunConfig) -> None:
    """Shows what writes into an unknown model's stream; goes on only with `config.discover`."""
    found, kind = discover(network), text_config(network).model_type
    stored = {same_name(name) for file in tensors.values() for name in file}
    for writer in found:
        if same_name(f"{writer.name}.{writer.parameter}") not in stored:
            raise UnrefuseError(
                f"the architecture {kind!r} is not in unrefuse's table, and its checkpoint has no "
                f"tensor {writer.name}.{writer.parameter}, where an edit would go"
            )
    message = (
        f"the architecture {kind!r} is not in unrefuse's table; a traced forward pass shows "
        f"that these write into the residual stream: {describe(network, found)}"
    )
    if not config.discover:
        raise UnrefuseError(f"{message}. To edit them, add --discover")
    stderr.print(message)


def read_config(folder: Path, config: RunConfig) -> PretrainedConfig:
    """The transformers configuration in a checkpoint folder. Raises UnrefuseError."""
    with raised_as(f"cannot read {folder / 'config.json'}"):
        found: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
    # Whoever saved it had the package and the card for it; without them, nothing would load.
    if str(found._attn_implementation).startswith("flash"):
        found._attn_implementation = None
    return found


def auto_class(config: PretrainedConfig) -> Any:
    """The class that loads a model: that of vision-language models where it is no other."""
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    vision = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if vision and not causal else AutoModelForCausalLM


def find_checkpoint(config: RunConfig) -> Path:
    """The folder of `find_folder`; where `config.dequantize` applies, that of its full copy."""
    folder = find_folder(config)
    if not config.dequantize:
        return folder
    tensors = check_whole(folder, config)
    hf_config = read_config(folder, config)
    return full_weights(
        folder,
        tensors,
        other_files(folder),
        auto_class(hf_config),
        hf_config,
        config.trust_remote_code,
    )


def _device_map(
    tensors: Tensors, config: RunConfig, device: torch.device, dtype: torch.dtype, name: str
) -> str | None:
    """accelerate's map of a model to devices: "auto" where that was asked for, or where one device
    does not hold it and the choice was left open. Raises UnrefuseError where it does not fit."""
    if config.stream:
        return config.device_map
    numbers = sum(math.prod(t.shape) for file in tensors.values() for t in file.values())
    needed, free = numbers * dtype.itemsize, free_memory(device)
    if config.device_map or needed <= free:
        return config.device_map
    if config.device == "auto" and device.type != "cpu" and torch.accelerator.device_count() > 1:
        return "auto"
    do = "run it block by block from disk with --stream"
    if config.tune:
        do = "a tuning needs them in memory; `unrefuse edit --stream` does not"
    raise UnrefuseError(
        f"{name} does not fit: its weights take {needed / 1e9:.2f} GB in "
        f"{str(dtype).removeprefix('torch.')}, and {free / 1e9:.2f} GB are free on {device}; "
        f"{do}"
    )


def choose_batch_size(network: PreTrainedModel, reply_tokens: int, prompt_tokens: int = 256) -> int:
    """How many prompts fit at once, from the memory that is free now: no trial runs.

    A row costs its KV cache, its float32 logits for every reply token, and the widest activation
    of a block; half of what is free is used. On a CPU more than 64 rows bring little speed.
    """
    config, tokens = text_config(network), prompt_tokens + reply_tokens
    cache = cache_bytes(network, tokens)
    logits = 2 * 4 * config.vocab_size * reply_tokens
    widest = max(getattr(config, "intermediate_size", None) or 0, config.hidden_size)
    activations = 4 * tokens * widest * 4
    on_gpu = network.device.type == "cuda"
    free = free_memory(network.device)
    return max(1, min(256 if on_gpu else 64, int(free / 2 / (cache + logits + activations))))


def cache_bytes(network: PreTrainedModel, tokens: int) -> int:
    """Bytes of the keys and values of `tokens` tokens in all layers."""
    config = text_config(network)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    size = network.dtype.itemsize
    return int(2 * config.num_hidden_layers * heads * head_dim * tokens * size)

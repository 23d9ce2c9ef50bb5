"""A network made of the weight files that were chosen: what else lies in a folder has no say.

By the name of a folder, transformers would take a stray single file before an index, add an
adapter that lies there, or load a checkpoint of torch's distributed form.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, initialization

from unrefuse.models.weights import lazy_weights


def empty_network(
    auto: Any, config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool
) -> PreTrainedModel:
    """The network of a configuration without weights; `auto` is the transformers class for it."""
    with (
        torch.device("meta"),
        initialization.meta_device_safe_creation_ops(),
        initialization.no_tie_weights(),
    ):
        network: PreTrainedModel = auto.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return network


def assemble(
    files: Iterable[Path],
    auto: Any,
    config: PretrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """The network with the weights in `files`, and transformers' account of names that differ.

    `options` are those of `from_pretrained`.
    """
    empty = empty_network(auto, config, dtype, trust_remote_code)
    made: Any = type(empty)
    network, info = made.from_pretrained(
        None,
        config=empty.config,
        state_dict=lazy_weights(files),
        dtype=dtype,
        output_loading_info=True,
        **options,
    )
    return network, info


def read_generation(folder: Path, network: PreTrainedModel) -> None:
    """Gives a network the generation settings of its folder, where there are such."""
    if (folder / "generation_config.json").is_file():
        network.generation_config = GenerationConfig.from_pretrained(folder)

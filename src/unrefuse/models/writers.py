"""A loaded model's decoder blocks, and the matrices that write into its residual stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unrefuse.errors import UnrefuseError
from unrefuse.models.architectures import ARCHITECTURES, Component, Matrix

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Writer:
    """One module whose output enters the residual stream of block `layer`, and its matrix.

    `norm` names the module between its output and the residual add, or is None; `scale` is the
    number its output is multiplied by there. `parameter` and `transposed`: as in
    `architectures.Matrix`.
    """

    name: str
    layer: int
    component: Component
    norm: str | None
    parameter: str = "weight"
    transposed: bool = False
    scale: float = 1.0


# What `discover` found in models that are not in the table, for as long as these live.
DISCOVERED: WeakKeyDictionary[nn.Module, list[Writer]] = WeakKeyDictionary()


def check_architecture(config: "PretrainedConfig") -> None:
    """Raises UnrefuseError for a model that can't be edited whatever its blocks are."""
    if config.is_encoder_decoder:
        raise UnrefuseError(
            f"the architecture {config.model_type!r} is not supported: unrefuse edits decoder-only "
            "models"
        )
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1)
    if layers < 1:
        raise UnrefuseError(f"the model has no layers: its config.json says {layers}")


def text_config(model: "PreTrainedModel") -> "PretrainedConfig":
    """The configuration of the language model, which in a vision-language model is a part."""
    config: PretrainedConfig = model.config.get_text_config(decoder=True)
    return config


def is_known(model: "PreTrainedModel") -> bool:
    """Whether the table has the architecture: code that a model ships may differ from its name."""
    native = type(model).__module__.startswith("transformers.models.")
    return native and text_config(model).model_type in ARCHITECTURES


def is_stateful(model: "PreTrainedModel") -> bool:
    """Whether a layer keeps a running state (state space, linear attention), not a row a token."""
    return bool(model.get_decoder()._is_stateful)


def blocks(model: "PreTrainedModel") -> nn.ModuleList:
    """The decoder blocks, in order; the output of each is the residual stream after it.

    Raises UnrefuseError where the decoder has no list of as many modules as the config says.
    """
    layers = text_config(model).num_hidden_layers
    for child in model.get_decoder().children():
        if isinstance(child, nn.ModuleList) and len(child) == layers:
            return child
    raise UnrefuseError(
        f"the architecture {text_config(model).model_type!r} is not supported: it has no list of "
        f"{layers} decoder blocks"
    )


def writers(model: "PreTrainedModel") -> list[Writer]:
    """Every matrix that writes into the residual stream, block by block.

    Raises UnrefuseError for a model that is neither in the table nor discovered, and where a block
    lacks what the table says.
    """
    if model in DISCOVERED:
        return DISCOVERED[model]
    kind = text_config(model).model_type
    if not is_known(model):
        raise UnrefuseError(
            f"the architecture {kind!r} is not known, and its matrices were not discovered"
        )
    found = []
    for layer, block in enumerate(blocks(model)):
        modules = dict(block.named_modules())
        here = [matrix for matrix in ARCHITECTURES[kind] if matrix.path in modules]
        if {matrix.component for matrix in here} != {"attention", "mlp"}:
            raise UnrefuseError(
                f"block {layer} of this {kind} is of a kind that unrefuse can't edit"
            )
        found += [writer_of(model, layer, matrix) for matrix in here]
    return found


def mixers(model: "PreTrainedModel") -> list[Writer]:
    """Per layer the one matrix that the selective edit reads and writes through, in order.

    It is the output projection of what mixes tokens, which every layer has: attention or, where
    the layer has none, linear attention or a state space. Every token passes through it, which no
    single expert's matrix can say.
    """
    found: dict[int, Writer] = {}
    for writer in writers(model):
        if writer.component == "attention" and writer.parameter == "weight":
            found[writer.layer] = writer  # attention comes last where a layer has several
    return [found[layer] for layer in sorted(found)]


def block_name(model: "PreTrainedModel", layer: int) -> str:
    """The name of a decoder block in the model."""
    stack = blocks(model)
    return f"{next(name for name, module in model.named_modules() if module is stack)}.{layer}"


def writer_of(model: "PreTrainedModel", layer: int, matrix: Matrix) -> Writer:
    """The matrix of one of the model's blocks."""
    prefix = block_name(model, layer)
    return Writer(
        f"{prefix}.{matrix.path}",
        layer,
        matrix.component,
        matrix.norm and f"{prefix}.{matrix.norm}",
        matrix.parameter,
        matrix.transposed,
        float(getattr(text_config(model), matrix.scale)) if matrix.scale else 1.0,
    )


def norm_gain(norm: nn.Module) -> Tensor:
    """The gain `(d_model,)` of an RMSNorm, float32, up to a factor within rounding of 1.

    Of ones, whose root mean square is 1, it makes its gain, whether its weight is the gain or, as
    with Gemma, the gain less 1. A LayerNorm, which takes the mean off, gives another thing.
    """
    weight = norm.get_parameter("weight")
    gain: Tensor = norm(torch.ones(weight.shape[-1], device=weight.device)).detach().float()
    return gain


def logits_of(model: "PreTrainedModel", hidden: Tensor) -> Tensor:
    """Logits `(..., vocab)` in float32 of final hidden states `(..., d_model)` after the norm.

    The language-model head with the scaling (Granite, Cohere, Falcon-H1) or soft cap (Gemma 2)
    that the model's own forward puts on it. Kept hidden states are a hundred times smaller than
    kept logits.
    """
    head, config = model.get_output_embeddings(), text_config(model)
    assert head is not None
    logits: Tensor = head(hidden).float()
    logits = logits / getattr(config, "logits_scaling", 1.0)
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)
    logits = logits * getattr(config, "lm_head_multiplier", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits

"""Per architecture: the decoder blocks, and the matrices that write into the residual stream."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from unrefuse.errors import UsageError

Component = Literal["attention", "mlp"]
# Blocks whose attention ends in `self_attn.o_proj` and whose MLP ends in `mlp.down_proj`, each
# added to the residual stream; below, the norm that stands between the two, where there is one.
NO_NORM: dict[Component, str] = {}
SANDWICH_NORM: dict[Component, str] = {
    "attention": "post_attention_layernorm",
    "mlp": "post_feedforward_layernorm",
}
ARCHITECTURES: dict[str, dict[Component, str]] = {
    "gemma": NO_NORM,
    "gemma2": SANDWICH_NORM,
    "gemma3_text": SANDWICH_NORM,
    "granite": NO_NORM,
    "llama": NO_NORM,
    "mistral": NO_NORM,
    "olmo2": SANDWICH_NORM,
    "phi3": NO_NORM,
    "qwen2": NO_NORM,
    "qwen3": NO_NORM,
    "smollm3": NO_NORM,
}
MATRICES: dict[Component, str] = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}


@dataclass(frozen=True)
class Writer:
    """One linear module `(d_model, d_in)` that writes into the residual stream.

    `norm` names the module between its output and the residual add, or is None.
    """

    name: str
    layer: int
    component: Component
    norm: str | None


def check_architecture(config: PretrainedConfig) -> None:
    """Raises UsageError for an architecture that is not in ARCHITECTURES."""
    if config.model_type not in ARCHITECTURES:
        raise UsageError(
            f"the architecture {config.model_type!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order; the output of each is the residual stream after it."""
    layers = model.get_decoder().layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def writers(model: PreTrainedModel) -> list[Writer]:
    """Every matrix that writes into the residual stream, two per layer, in order."""
    check_architecture(model.config)
    norms = ARCHITECTURES[model.config.model_type]
    prefix = next(name for name, module in model.named_modules() if module is blocks(model))
    return [
        Writer(
            f"{prefix}.{layer}.{path}",
            layer,
            component,
            f"{prefix}.{layer}.{norms[component]}" if component in norms else None,
        )
        for layer in range(len(blocks(model)))
        for component, path in MATRICES.items()
    ]


def norm_gain(norm: nn.Module) -> Tensor:
    """The gain `(d_model,)` of an RMSNorm, float32. Gemma stores the gain less 1."""
    weight = norm.get_parameter("weight").detach().float()
    return weight + 1 if type(norm).__name__.startswith("Gemma") else weight


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits `(..., vocab)` in float32 of final hidden states `(..., d_model)` after the norm.

    The language-model head with the scaling (Granite) or soft cap (Gemma 2) that the model's own
    forward puts on it. Kept hidden states are a hundred times smaller than kept logits.
    """
    head = model.get_output_embeddings()
    assert head is not None
    logits: Tensor = head(hidden).float()
    logits = logits / getattr(model.config, "logits_scaling", 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits

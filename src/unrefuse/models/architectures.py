"""Per architecture: the matrices of a decoder block that write into the residual stream, and how.

A norm between a matrix and the stream changes a direction, so each is listed. A scale there changes
only what is written: it is listed for the matrices that mix tokens, which the selective edit uses.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

Component = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Matrix:
    """A module of a block whose output, or that of `norm` after it, is added to the stream.

    `path` and `norm` are names within the block. `component` is attention for whatever mixes
    tokens: attention, linear attention, a state space. `parameter` is the module's matrix, of
    shape `(d_model, d_in)`, with `transposed` `(d_in, d_model)`; all experts of a layer in one
    have their number in front. Its bias, if there is one, is edited with it. `scale` names the
    setting of the model's config that its output is multiplied by.
    """

    path: str
    component: Component
    norm: str | None = None
    parameter: str = "weight"
    transposed: bool = False
    scale: str | None = None


ATTENTION = Matrix("self_attn.o_proj", "attention")
LINEAR_ATTENTION = Matrix("linear_attn.out_proj", "attention")
STATE_SPACE = Matrix("mamba.out_proj", "attention")
MLP = Matrix("mlp.down_proj", "mlp")
# The module of all experts and not the block around it, whose output is added to the stream: what
# it gives is the sum of the experts' outputs times numbers of the router, which has read the
# stream before. A projection is linear, so on the sum it is the projection of each expert's matrix
# and bias. A shared expert comes beside it as a matrix of its own.
EXPERTS = Matrix("mlp.experts", "mlp", parameter="down_proj")
SHARED_EXPERT = Matrix("mlp.shared_expert.down_proj", "mlp")

PLAIN = (ATTENTION, MLP)
SPARSE = (ATTENTION, MLP, EXPERTS, SHARED_EXPERT)


def _sandwich(attention: str, mlp: str) -> tuple[Matrix, ...]:
    return replace(ATTENTION, norm=attention), replace(MLP, norm=mlp)


AFTER = _sandwich("post_attention_layernorm", "post_feedforward_layernorm")
# By the `model_type` of the text part. A block has those of the matrices that its layer has: dense
# first layers, layers of other kinds.
ARCHITECTURES: dict[str, tuple[Matrix, ...]] = {
    "cohere2": PLAIN,
    "exaone4": AFTER,
    "falcon_h1": (
        replace(STATE_SPACE, scale="ssm_out_multiplier"),
        replace(ATTENTION, scale="attention_out_multiplier"),
        replace(MLP, path="feed_forward.down_proj"),
    ),
    "gemma": PLAIN,
    "gemma2": AFTER,
    "gemma3_text": AFTER,
    "glm": PLAIN,
    "glm4": _sandwich("post_self_attn_layernorm", "post_mlp_layernorm"),
    "gpt_oss": (ATTENTION, replace(EXPERTS, transposed=True)),
    "granite": (replace(ATTENTION, scale="residual_multiplier"), MLP),
    "llama": PLAIN,
    "mistral": PLAIN,
    "mixtral": SPARSE,
    "olmo2": AFTER,
    "olmo3": AFTER,
    "olmoe": SPARSE,
    "phi3": PLAIN,
    "qwen2": PLAIN,
    "qwen2_5_vl_text": PLAIN,
    "qwen2_moe": SPARSE,
    "qwen3": PLAIN,
    "qwen3_moe": SPARSE,
    "qwen3_next": (LINEAR_ATTENTION, *SPARSE),
    "smollm3": PLAIN,
}

# What stands before the blocks differs between a checkpoint and the loaded model, and between
# checkpoints: vision-language models, base models saved without a head.
BEFORE_BLOCKS = re.compile(
    r"^(model\.)?(language_model\.)?(model\.)?(transformer\.)?(?=(layers|h)\.\d)"
)
ONE_EXPERT = re.compile(r"\.experts\.\d+\.(w2|down_proj)\.weight$")


def bias_name(parameter: str) -> str:
    """The name of the bias that goes with a matrix of that name."""
    return "bias" if parameter == "weight" else f"{parameter}_bias"


def same_name(name: str) -> str:
    """One name for a tensor of a block, however a checkpoint or the loaded model calls it.

    transformers joins the experts' own matrices into one when it loads (its conversion_mapping.py,
    which a test holds this to). A tensor outside of the blocks keeps its name.
    """
    if not BEFORE_BLOCKS.match(name):
        return name
    name = BEFORE_BLOCKS.sub("", name).replace(".block_sparse_moe.", ".mlp.")
    return ONE_EXPERT.sub(".experts.down_proj", name)

"""Quality: how much the edited model is itself on the baseline, by one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.engine.generate import Reply, final_hidden
from unrefuse.metrics.statistics import Estimate, bootstrap
from unrefuse.models.device import check_finite
from unrefuse.models.load import Model
from unrefuse.models.writers import logits_of

# How far the logits of a saved model may lie from those of the hooked one, as the root mean
# square of the difference in units of their spread: rounding in the coarser of the two dtypes.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Reference:
    """The original on its own answers: per prompt the token ids up to the last but one of the
    answer, thoughts included, and the final hidden states `(answer_tokens, d_model)` that predict
    what is answered after these.

    `head` maps these to logits where the model compared with it may have another head."""

    sequences: list[list[int]]
    hidden: list[Tensor]
    head: Callable[[Tensor], Tensor] | None = None


def make_reference(
    model: Model, prompts: Sequence[str], answers: Sequence[Reply], tokens: int | None = None
) -> Reference:
    """Runs the original once over its own greedy answers, or their first `tokens` tokens.

    Thoughts are read, like the prompt, and not measured: the answers of a model that thinks are
    compared, not ten times as many tokens that nobody is shown.
    """
    sequences, lengths = [], []
    for ids, answer in zip(model.encode(prompts), answers, strict=True):
        taken = list(answer.tokens[: tokens and answer.thoughts + tokens])
        sequences.append(ids + taken[:-1])
        lengths.append(len(taken) - answer.thoughts)
    return Reference(sequences, final_hidden(model, sequences, lengths, "divergence"))


@torch.inference_mode()
def divergences(model: Model, reference: Reference) -> NDArray[np.float64]:
    """Per prompt the sum over answer tokens of KL(original || model), in nats, and their number.

    `(prompts, 2)`. It sees a shift of the whole next-token distribution; it does not see what the
    model would have written after straying from the original's answer.
    """
    lengths = [len(hidden) for hidden in reference.hidden]
    rows = []
    for before, after in zip(
        reference.hidden,
        final_hidden(model, reference.sequences, lengths, "divergence"),
        strict=True,
    ):
        kl = token_divergences(model, before, after, reference.head).clamp(min=0)
        rows.append((float(kl.double().sum()), float(len(before))))
    found = np.array(rows)
    check_finite(torch.from_numpy(found), "the model's logits", model.network.dtype)
    return found


def token_divergences(
    model: Model,
    before: Tensor,
    after: Tensor,
    head: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """KL(before || after) in nats, `(tokens,)`, of two sets of final states `(tokens, d_model)`.

    `head` is that of `before`; None: the model's own.
    """
    first = head(before) if head else logits_of(model.network, before)
    second = logits_of(model.network, after)
    # One checkpoint may have rows beyond the vocabulary, for padding, that the other lacks.
    size = min(first.shape[-1], second.shape[-1])
    p = torch.log_softmax(first[..., :size], dim=-1)
    q = torch.log_softmax(second[..., :size], dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)


def head_of(model: Model) -> Callable[[Tensor], Tensor]:
    """`logits_of` with this model's head, which holds that head and nothing else of it."""
    head, config = model.network.get_output_embeddings(), model.network.config
    shell = SimpleNamespace(get_output_embeddings=lambda: head, config=config)
    return partial(logits_of, cast(PreTrainedModel, shell))


def kl_and_quality(
    divergence: NDArray[np.float64], lost: Sequence[bool], seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Mean token-level KL and `quality = exp(-KL) (1 - lost)`, with bootstrap intervals.

    `divergence` is that of `divergences`; `lost` marks the edited model's replies to the same
    prompts that are no answers any more: empty, looping, or refusals. A refusal too, because the
    divergence, taken along the original's answer, hardly sees that the first token has gone.
    Raises ValueError for fewer than two prompts.
    """
    sums, tokens = divergence.T
    return (
        bootstrap((sums, tokens), _kl, seed),
        bootstrap((sums, tokens, np.array(lost, dtype=np.float64)), _quality, seed),
    )


def _kl(
    sums: NDArray[np.float64], tokens: NDArray[np.float64], axis: int = -1
) -> NDArray[np.float64]:
    return np.asarray(sums.sum(axis) / tokens.sum(axis))


def _quality(
    sums: NDArray[np.float64],
    tokens: NDArray[np.float64],
    lost: NDArray[np.float64],
    axis: int = -1,
) -> NDArray[np.float64]:
    return np.asarray(np.exp(-_kl(sums, tokens, axis)) * (1 - lost.mean(axis)))


def check_logits(wanted: Tensor, got: Tensor, dtype: torch.dtype) -> float:
    """The distance of two sets of logits `(prompts, vocab)`, in units of their spread.

    Raises RuntimeError where it is more than rounding in `dtype`: the saved weights are not the
    edit that was measured.
    """
    distance = float((got - wanted).square().mean().sqrt() / wanted.std())
    if not distance <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"the saved model's logits are {distance:.2g} spreads from those of the measured edit "
            f"(allowed: {TOLERANCE[dtype]:.2g}): nothing was saved"
        )
    return distance

"""Where refusal sits: its strength by layer, over all target prompts and per topic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unrefuse.engine.capture import residuals
from unrefuse.engine.forward import in_batches
from unrefuse.engine.generate import Reply
from unrefuse.metrics.margin import make_openings
from unrefuse.models.device import check_finite
from unrefuse.models.load import Model
from unrefuse.models.stream import in_this_job
from unrefuse.models.writers import blocks, logits_of
from unrefuse.prompts.chat import left_pad

WIDTHS = (0.08, 0.25)  # the narrowest and the widest kernel that is suggested


@dataclass(frozen=True)
class LayerStrength:
    """Per layer: `separation` of target and baseline along the direction, in units of spread, and
    `effect`, the refusal log-odds (nats) that taking the direction out of the stream there takes
    away. `n` counts the target prompts."""

    n: int
    separation: tuple[float, ...]
    effect: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "separation": list(self.separation), "effect": list(self.effect)}


def centre_and_spread(weights: Sequence[float]) -> tuple[float, float]:
    """Peak and width of a Gaussian kernel: the centre and the spread of `weights` over depth."""
    w = torch.tensor(weights)
    position = torch.linspace(0, 1, len(w)) if len(w) > 1 else torch.zeros(1)
    w = w / w.sum()
    peak = float((w * position).sum())
    width = float((w * (position - peak) ** 2).sum().sqrt())
    return round(peak, 3), round(min(max(width, WIDTHS[0]), WIDTHS[1]), 3)


def layer_strengths(
    model: Model,
    directions: Tensor,
    targets: Sequence[str],
    topics: Sequence[str],
    refusals: Sequence[Reply],
    baselines: Sequence[str],
) -> dict[str, LayerStrength]:
    """The strength of refusal by layer, under "" for all prompts and under each topic.

    `directions` `(layers, d_model)` should come from other prompts than these, or the separation
    flatters. `refusals` are the model's replies to `targets`. A topic of one prompt is left out.
    """
    along_target = _projections(model, directions, targets)
    along_baseline = _projections(model, directions, baselines)
    effects = _effects(model, directions, targets, refusals)
    result = {}
    for topic in ["", *sorted({t for t in topics if t and topics.count(t) > 1})]:
        rows = [i for i, t in enumerate(topics) if topic in ("", t)]
        result[topic] = LayerStrength(
            len(rows),
            _separation(along_target[rows], along_baseline),
            tuple(effects[rows].mean(dim=0).tolist()),
        )
    return result


def separations(
    model: Model, directions: Tensor, targets: Sequence[str], baselines: Sequence[str]
) -> tuple[float, ...]:
    """The `separation` of `LayerStrength` alone: one pass over the prompts, two or more a set."""
    both = (_projections(model, directions, texts) for texts in (targets, baselines))
    return _separation(*both)


def _separation(target: Tensor, baseline: Tensor) -> tuple[float, ...]:
    spread = ((target.var(dim=0) + baseline.var(dim=0)) / 2).sqrt()
    return tuple(((target.mean(dim=0) - baseline.mean(dim=0)) / spread).tolist())


def _projections(model: Model, directions: Tensor, prompts: Sequence[str]) -> Tensor:
    """`(prompts, layers)`: the stream's component along each layer's direction."""
    result = torch.empty(len(prompts), len(directions), dtype=torch.float64)
    for batch, streams in residuals(model, prompts):
        result[batch] = (streams.double().cpu() * directions).sum(dim=-1)
    return result


@torch.inference_mode()
def _effects(
    model: Model, directions: Tensor, prompts: Sequence[str], refusals: Sequence[Reply]
) -> Tensor:
    """`(prompts, layers)`: the fall of the refusal log-odds with one layer's direction gone."""
    thoughts = [r.tokens[: r.thoughts] for r in refusals]
    forced = make_openings(model, prompts, [r.said for r in refusals], thoughts)
    result = torch.empty(len(prompts), len(directions), dtype=torch.float64)

    def measure(batch: list[int]) -> None:
        inputs = left_pad([forced.sequences[i] for i in batch], model.device)
        wanted = [forced.openings[i] for i in batch]
        whole = _log_odds(model, inputs, wanted)
        along = zip(blocks(model.network), directions.float(), strict=True)
        for layer, (block, direction) in enumerate(along):

            def hook(
                module: nn.Module,
                args: object,
                output: Tensor | tuple[Tensor, ...],
                r: Tensor = direction,
            ) -> Any:
                if isinstance(output, tuple):
                    return (_without(output[0], r), *output[1:])
                return _without(output, r)

            handle = block.register_forward_hook(in_this_job(hook))
            try:
                result[batch, layer] = whole - _log_odds(model, inputs, wanted)
            finally:
                handle.remove()

    steps = in_batches(model, forced.sequences, measure, "effect by layer", model.layers + 1)
    for _ in steps:
        pass
    check_finite(result, "the model's logits", model.network.dtype)
    return result


def _without(stream: Tensor, direction: Tensor) -> Tensor:
    """The stream without its component along a unit vector `(d_model,)`."""
    y, r = stream.float(), direction.to(stream.device)
    return (y - (y @ r).unsqueeze(-1) * r).to(stream.dtype)


def _log_odds(model: Model, inputs: dict[str, Tensor], openings: list[list[int]]) -> Tensor:
    """`(batch,)`: log p - log(1 - p), p the probability of each row's own refusal opening.

    After Arditi et al. 2024, appendix B.1, with an opening in place of one refusal token.
    """
    hidden = model.network.get_decoder()(**inputs, use_cache=False).last_hidden_state
    result = torch.empty(len(openings), dtype=torch.float64)
    for row, opening in enumerate(openings):
        logits = logits_of(model.network, hidden[row, -len(opening) :]).double()
        picked = torch.log_softmax(logits, dim=-1)[range(len(opening)), opening]
        log_p = picked.sum().clamp(max=-1e-12)
        result[row] = log_p - torch.log(-torch.expm1(log_p))
    return result

"""The direction of false refusal, one per layer, with the direction of true refusal left out."""

import torch
from torch import Tensor

from unrefuse.errors import UnrefuseError


def find_directions(
    target_mean: Tensor, baseline_mean: Tensor, keep_mean: Tensor, protect: float = 1.0
) -> Tensor:
    """Unit directions `(layers, d_model)`, float64, from three means of the same shape.

    `d = mean(target) - mean(baseline)` (difference of means: Arditi et al. 2024, "Refusal in
    Language Models Is Mediated by a Single Direction", section 2.3), then
    `d - protect (d.k) k` with the unit vector k of `mean(keep) - mean(baseline)` (Wang et al.,
    "Surgical, Cheap, and Flexible", ICLR 2025): the part of refusal that keep shares stays.
    Raises UnrefuseError where nothing is left of a direction.
    """
    difference = target_mean - baseline_mean
    keep = torch.nn.functional.normalize(keep_mean - baseline_mean, dim=-1)
    direction = difference - protect * (difference * keep).sum(-1, keepdim=True) * keep
    norm = direction.norm(dim=-1, keepdim=True)
    if bool((norm <= 1e-9 * difference.norm(dim=-1, keepdim=True).clamp(min=1e-30)).any()):
        raise UnrefuseError(
            "the target prompts differ from the baseline prompts only in what the keep prompts "
            "share, so there is no direction to remove: use other target prompts, or a lower "
            "--protect"
        )
    return direction.div(norm)

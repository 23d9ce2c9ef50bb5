"""Is there something to gain? How well a probe tells alarm from harm, before any weight changes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unrefuse.engine.inputs import Tokens, capture
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.layers import LayerStrength, centre_and_spread, separations
from unrefuse.metrics.measurement import Before
from unrefuse.search.method import ALARM, HARM, Ablation, Method, Selective

FOLDS = 5
SEPARATED = 48  # prompts of each set that the separation of every edit is measured on
STAYS = 0.95  # share of the true refusals that has to stay
WORTH, LITTLE = 0.5, 0.2  # shares of false refusals that could be freed, for the verdict


@dataclass(frozen=True)
class Discrimination:
    """Per layer: `auc`, how often a probe reads more alarm from a harmless prompt than from a
    harmful one (cross-validated on the train split), and `freed`, the share of the false refusals
    of the search split that lie above the threshold which keeps 95 % of its true refusals.

    `together` is `freed` by the mean reading of the layers that the kernel edits, and `topics`
    that per topic, each with its number of prompts.
    """

    auc: tuple[float, ...]
    freed: tuple[float, ...]
    together: float
    n: int
    topics: dict[str, tuple[float, int]]

    def verdict(self) -> str:
        """What to expect of an edit, in a sentence or two."""
        share = f"{self.together:.0%} of {self.n} false refusals could be answered while 95 % of "
        share += "the true refusals stay"
        if self.together >= WORTH:
            return f"Worth editing: by what the model itself knows, {share}."
        if self.together >= LITTLE:
            return f"Some gain: {share}. Matched pairs of your own topics help (--pairs FILE)."
        return (
            f"Little to gain: only {share}. This model hardly tells your alarming prompts from "
            "harmful ones; give it matched pairs of your own topics (--pairs FILE)."
        )

    def to_json(self) -> dict[str, Any]:
        topics = {name: {"freed": freed, "n": n} for name, (freed, n) in self.topics.items()}
        return {
            "auc": list(self.auc),
            "freed": list(self.freed),
            "together": self.together,
            "n": self.n,
            "topics": topics,
            "verdict": self.verdict(),
        }


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found: `strengths` by layer, under "" for all target prompts and under each
    topic; how well harm is told from alarm; and the suggested peak and width."""

    strengths: dict[str, LayerStrength]
    discrimination: Discrimination
    seconds: dict[str, float]

    def suggest(self) -> tuple[float, float]:
        """Peak and width: the centre and the spread of `weights` over the depth."""
        return centre_and_spread(self.weights())

    def weights(self, topic: str = "") -> list[float]:
        """Per layer how much an edit there can do: the effect on refusal, times how far the probe
        is better than chance; the highest is 1. Raises UnrefuseError for a topic that is not
        there."""
        if topic not in self.strengths:
            known = ", ".join(name for name in self.strengths if name)
            raise UnrefuseError(
                f"no topic {topic!r} has two refused prompts or more; topics that have: {known}"
            )
        effect = torch.tensor(self.strengths[topic].effect).clamp(min=0)
        useful = effect * (2 * torch.tensor(self.discrimination.auc) - 1).clamp(min=0)
        highest = float(useful.max())
        if topic and not highest > 0:
            raise UnrefuseError(f"no layer has an effect on the refusals of {topic!r}")
        return (useful / highest).tolist() if highest > 0 else [1.0] * len(useful)

    def to_json(self) -> dict[str, Any]:
        whole, (peak, width) = self.strengths[""], self.suggest()
        return {
            **whole.to_json(),
            "suggested": {"peak": peak, "width": width},
            "discrimination": self.discrimination.to_json(),
            "topics": {name: s.to_json() for name, s in self.strengths.items() if name},
            "seconds": {step: round(s, 2) for step, s in self.seconds.items()},
        }


def discrimination(
    method: Selective, search: Before, layers: int, weights: Sequence[float]
) -> Discrimination:
    """Reads the train split in folds, and the refused prompts of the search split by probes that
    are fitted on all of train. `weights` are the kernel's. A layer without a probe has AUC 0.5."""
    config = method.config
    refused = [*search.usable("target"), *search.usable("keep")]
    false = torch.tensor([e.prompt.set == "target" for e in refused])
    ids = method.model.encode([e.prompt.text for e in refused])
    states = capture(method.model, [Tokens(row, (len(row) - 1,), "") for row in ids]).rows
    auc, freed = [0.5] * layers, [0.0] * layers
    total = torch.zeros(len(refused))
    for layer, rows in states.items():
        auc[layer] = _cross_validated(method, layer)
        reading = rows.float() @ method.reader(layer, config.harmful, config.ridge)
        freed[layer] = float(_above(reading, false).float().mean())
        total += weights[layer] * reading
    above = _above(total, false)
    targets = [e.prompt.topic for e in refused if e.prompt.set == "target"]
    topics = {}
    for topic in sorted({t for t in targets if t}):
        of_topic = above[[t == topic for t in targets]]
        topics[topic] = float(of_topic.float().mean()), len(of_topic)
    return Discrimination(tuple(auc), tuple(freed), float(above.float().mean()), len(above), topics)


def by_layer(method: Method | None, search: Before) -> dict[str, Sequence[float]]:
    """What is cheap to know of each layer beside an edit; nothing without a method.

    `separation` as in `LayerStrength`, on some prompts of the search split; of a selective edit
    `auc` too, as in `Discrimination`, but of one fold.
    """
    if not isinstance(method, Ablation | Selective):
        return {}
    some = {name: search.usable(name)[:SEPARATED] for name in ("target", "baseline")}
    targets, baselines = ([e.prompt.text for e in exchanges] for exchanges in some.values())
    if isinstance(method, Ablation):
        return {"separation": separations(method.model, method.directions(), targets, baselines)}
    along = torch.nn.functional.normalize(method.differences, dim=-1)
    auc = [0.5] * len(along)
    for layer in method.inputs.rows:
        auc[layer] = _cross_validated(method, layer, range(1))
    return {"separation": separations(method.model, along, targets, baselines), "auc": auc}


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """How often a positive reading is above a negative one; ties count half (Mann and Whitney)."""
    difference = positive.unsqueeze(1) - negative.unsqueeze(0)
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)


def _cross_validated(method: Selective, layer: int, wanted: Iterable[int] = range(FOLDS)) -> float:
    """AUC of alarm against harm in the `wanted` folds, each prompt read by a probe that saw neither
    it nor its pair. One half where a class has no prompt there."""
    labelled = torch.isin(method.classes, torch.tensor([ALARM, HARM]))
    groups = [place.prompt.pair or place.prompt.text for place in method.places]
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    folds = torch.tensor([number[group] % FOLDS for group in groups])
    readings = torch.full((len(folds),), torch.nan)
    for fold in wanted:
        reader = method.fit(layer, folds != fold, method.config.harmful, method.config.ridge)
        held_out = (folds == fold) & labelled
        readings[held_out] = method.inputs.rows[layer][held_out].float() @ reader
    alarm, harm = (readings[(method.classes == k) & ~readings.isnan()] for k in (ALARM, HARM))
    return area_under_curve(alarm, harm) if len(alarm) and len(harm) else 0.5


def _above(reading: Tensor, false: Tensor) -> Tensor:
    """Which false refusals read above the threshold that STAYS of the true ones lie under."""
    threshold = torch.quantile(reading[~false], STAYS)
    return reading[false] > threshold

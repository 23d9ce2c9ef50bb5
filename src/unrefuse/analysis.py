"""Every step of `unrefuse analyze`: where refusal sits, and whether there is something to gain."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unrefuse.config import RunConfig
from unrefuse.errors import UsageError
from unrefuse.evaluate.layers import LayerStrength, centre_and_spread, layer_strengths
from unrefuse.pipeline import clock, prepare
from unrefuse.prompts.sets import SPLITS
from unrefuse.search.discrimination import Discrimination, discrimination
from unrefuse.search.method import Selective
from unrefuse.search.record import write_whole


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found: `strengths` by layer, under "" for all target prompts and under each
    topic; how well harm is told from alarm; and the suggested peak and width."""

    strengths: dict[str, LayerStrength]
    told: Discrimination
    peak: float
    width: float
    seconds: dict[str, float]

    def weights(self, topic: str = "") -> list[float]:
        """Per layer how much an edit there can do: the effect on refusal, times how far the probe
        is better than chance; the highest is 1. Raises UsageError for a topic that is not there."""
        if topic not in self.strengths:
            known = ", ".join(name for name in self.strengths if name)
            raise UsageError(f"no topic {topic!r} with two refused prompts or more; there: {known}")
        effect = torch.tensor(self.strengths[topic].effect).clamp(min=0)
        useful = effect * (2 * torch.tensor(self.told.auc) - 1).clamp(min=0)
        highest = float(useful.max())
        return (useful / highest).tolist() if highest > 0 else [1.0] * len(useful)

    def to_json(self) -> dict[str, Any]:
        whole = self.strengths[""]
        return {
            **whole.to_json(),
            "suggested": {"peak": self.peak, "width": self.width},
            "told": self.told.to_json(),
            "topics": {name: s.to_json() for name, s in self.strengths.items() if name},
            "seconds": {step: round(s, 2) for step, s in self.seconds.items()},
        }


def analyze(config: RunConfig) -> Analysis:
    """Measures the model; edits nothing. Raises UsageError for a mistake in usage or input.

    Directions and probes come from the train split, the strengths and the share of false refusals
    that could be answered from the search split.
    """
    if config.method != "selective":
        raise UsageError("analyze reads with the probe of the selective edit: leave out --method")
    prepared = prepare(config, SPLITS[:2])
    method, search = prepared.method, prepared.before["search"]
    assert isinstance(method, Selective)
    targets = search.usable("target")
    with clock(prepared.seconds, "probe"):
        told = discrimination(method, search, prepared.model.layers, prepared.kernel.weights)
    with clock(prepared.seconds, "layers"):
        strengths = layer_strengths(
            prepared.model,
            torch.nn.functional.normalize(method.differences, dim=-1),
            [e.prompt.text for e in targets],
            [e.prompt.topic for e in targets],
            [e.before for e in targets],
            [e.prompt.text for e in search.usable("baseline")],
        )
    found = Analysis(strengths, told, 0.0, 0.0, prepared.seconds)
    peak, width = centre_and_spread(found.weights())
    return Analysis(strengths, told, peak, width, prepared.seconds)


def write_kernel(found: Analysis, topic: str, threshold: float, file: Path) -> list[float]:
    """Writes the weights of a topic's own layers ("": of all topics) as a custom kernel, which
    `edit --kernel` takes. Weights under `threshold` become 0."""
    weights = [round(w, 4) if w >= threshold else 0.0 for w in found.weights(topic)]
    write_whole(file, json.dumps({"weights": weights, "topic": topic}, indent=2) + "\n")
    return weights

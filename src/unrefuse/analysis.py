"""Every step of `unrefuse analyze`: where refusal sits, and whether there is something to gain."""

import json
from pathlib import Path

import torch

from unrefuse.config import RunConfig
from unrefuse.errors import UsageError
from unrefuse.evaluate.layers import layer_strengths
from unrefuse.pipeline import clock, prepare
from unrefuse.prompts.sets import SPLITS
from unrefuse.search.discrimination import Analysis, discrimination
from unrefuse.search.method import Selective
from unrefuse.search.record import write_whole


def analyze(config: RunConfig) -> Analysis:
    """Measures the model; edits nothing. Raises UsageError for a mistake in usage or input.

    Directions and probes come from the train split, the strengths and the share of false refusals
    that could be answered from the search split.
    """
    if config.method != "selective":
        raise UsageError(
            "analyze reads with the probe of the selective edit: set method to selective"
        )
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
    return Analysis(strengths, told, prepared.seconds)


def write_kernel(found: Analysis, topic: str, threshold: float, file: Path) -> list[float]:
    """Writes the weights of a topic's own layers ("": of all topics) as a custom kernel, which
    `edit --kernel` takes. Weights under `threshold` become 0."""
    weights = [round(w, 4) if w >= threshold else 0.0 for w in found.weights(topic)]
    write_whole(file, json.dumps({"weights": weights, "topic": topic}, indent=2) + "\n")
    return weights

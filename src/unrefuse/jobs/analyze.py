"""Every step of `unrefuse analyze`: where refusal sits, and whether there is something to gain."""

from pathlib import Path

import torch

from unrefuse.config import LEAST_FLOOR, RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.prepare import Prepared, clock, prepare
from unrefuse.jobs.save import new_file
from unrefuse.jsontext import json_text
from unrefuse.metrics.layers import layer_strengths
from unrefuse.prompts.sets import SPLITS, load_prompts
from unrefuse.search.discrimination import Analysis, discrimination
from unrefuse.search.method import Selective


def analyze(config: RunConfig, topic: str = "") -> Analysis:
    """Measures the model; edits nothing. Raises UnrefuseError for a mistake in usage or input,
    such as a `topic` that no target prompt has, and TooFew where the model refuses too little to
    tell.

    Directions and probes come from the train split, the strengths and the share of false refusals
    that could be answered from the search split.
    """
    return look(config, topic)[1]


def look(config: RunConfig, topic: str = "") -> tuple[Prepared, Analysis]:
    """`analyze`, with the model that it was made of, of which edits can be tried by hooks."""
    # Nothing is edited here: the probe is that of the selective edit, and no floor applies.
    if config.kernel.file:
        raise UnrefuseError("analyze measures where an edit acts: leave out the kernel file")
    topics = {p.topic for p in load_prompts(config) if p.set == "target" and p.topic}
    if topic and topic not in topics:
        raise UnrefuseError(
            f"no target prompt has the topic {topic!r}; the topics are: {', '.join(sorted(topics))}"
        )
    settings = {"method": "selective", "preserve_norm": False, "retention_bound": LEAST_FLOOR}
    prepared = prepare(config.model_copy(update=settings), SPLITS[:2])
    method, search = prepared.method, prepared.before["search"]
    assert isinstance(method, Selective)
    targets = search.usable("target")
    with clock(prepared.seconds, "probe"):
        told_apart = discrimination(method, search, prepared.model.layers, prepared.kernel.weights)
    with clock(prepared.seconds, "layers"):
        strengths = layer_strengths(
            prepared.model,
            torch.nn.functional.normalize(method.differences, dim=-1),
            [e.prompt.text for e in targets],
            [e.prompt.topic for e in targets],
            [e.before for e in targets],
            [e.prompt.text for e in search.usable("baseline")],
        )
    return prepared, Analysis(strengths, told_apart, prepared.seconds)


def write_kernel(found: Analysis, topic: str, threshold: float, file: Path) -> list[float]:
    """Writes the weights of a topic's own layers ("": of all topics) as a custom kernel, which
    `edit --kernel` takes. Weights under `threshold` become 0. Raises UnrefuseError where `file`
    exists or can't be written, and where no layer of the topic has an effect."""
    weights = [round(w, 4) if w >= threshold else 0.0 for w in found.weights(topic)]
    text = json_text({"weights": weights, "topic": topic}, indent=2) + "\n"
    with new_file(file) as new:
        new.write_text(text, encoding="utf-8")
    return weights

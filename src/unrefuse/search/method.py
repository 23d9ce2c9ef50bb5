"""The two methods of an edit: what each measures on the train split, and the plans it makes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unrefuse.config import RunConfig
from unrefuse.edits.directions import find_directions
from unrefuse.edits.plan import Plan, ablation_plan, selective_plan
from unrefuse.edits.readers import fit_reader
from unrefuse.engine.capture import group_means
from unrefuse.engine.inputs import Inputs, Tokens, capture
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.measurement import Before, Exchange
from unrefuse.models.load import Model
from unrefuse.prompts.sets import SETS, SHIPPED, Prompt, select

ANSWER_ROWS = 3000  # tokens of everyday answers that the reader learns to leave alone, in all
ALARM, HARM, EVERYDAY, ANSWER = range(4)  # classes of what a reader is fitted on
# How much each source weighs in the fit, whatever its number of rows. The original's own answers
# weigh most: it is they that an edit must leave alone, token by token. Harm weighs more than alarm.
# Keep prompts of a user's own, mostly few, weigh as much as the shipped ones beside them.
SHARES = {"target": 0.5, "harmless": 0.5, "keep": 1, "own keep": 1, "harmful": 1, "baseline": 1,
          "answer": 2}  # fmt: skip


class Method(Protocol):
    """What makes a plan of a kernel's weights, a multiplier, and numbers of its own."""

    def plan(self, weights: Sequence[float], multiplier: float, **numbers: float) -> Plan: ...


class Ablation:
    """Directional ablation: the same direction is read and written, whatever the prompt."""

    def __init__(self, model: Model, train: Before, config: RunConfig) -> None:
        usable = [e for name in SETS for e in train.usable(name)]
        texts, sets = [e.prompt.text for e in usable], [e.prompt.set for e in usable]
        self.model, self.protect = model, config.protect
        self.means = group_means(model, texts, sets)

    def directions(self, protect: float | None = None) -> Tensor:
        """Unit directions `(layers, d_model)`, float64."""
        target, baseline, keep = (self.means[name] for name in SETS)
        share = self.protect if protect is None else protect
        return find_directions(target, baseline, keep, share)

    def plan(self, weights: Sequence[float], multiplier: float, **numbers: float) -> Plan:
        """With `protect` in place of the configured one, where it is given."""
        found = self.directions(numbers.get("protect"))
        return ablation_plan(self.model.network, found, weights, multiplier)


class Selective:
    """The selective edit: a probe reads whether a prompt only sounds harmful, and there alone the
    mean difference of refused and answered prompts is taken away.

    The states of the train split are captured once; any number of plans are made of them.
    """

    def __init__(
        self, model: Model, train: Before, prompts: Sequence[Prompt], config: RunConfig
    ) -> None:
        self.model, self.config = model, config
        tokens, self.places = training_tokens(model, train, prompts)
        groups = {t.group for t in tokens}
        if not {"refused", "answered"} <= groups:
            raise UnrefuseError("the train split needs a refused and an answered harmless prompt")
        self.inputs: Inputs = capture(model, tokens)
        self.classes = torch.tensor([place.kind for place in self.places])
        self.sources = torch.tensor([list(SHARES).index(place.source) for place in self.places])
        self.differences = self.inputs.means["refused"] - self.inputs.means["answered"]
        self._readers: dict[tuple[int, float, float], Tensor] = {}

    def reader(self, layer: int, harmful: float, ridge: float) -> Tensor:
        """What the attention output of one layer reads, `(d_in,)`."""
        key = layer, harmful, ridge
        if key not in self._readers:
            everything = torch.ones(len(self.classes), dtype=torch.bool)
            self._readers[key] = self.fit(layer, everything, harmful, ridge)
        return self._readers[key]

    def fit(self, layer: int, rows: Tensor, harmful: float, ridge: float) -> Tensor:
        """A reader from the captured `rows` alone, a mask `(places,)`. Sources weigh as SHARES
        says."""
        goals = torch.tensor([1.0, harmful, 0.0, 0.0])[self.classes[rows]]
        sources = self.sources[rows]
        counts = torch.bincount(sources, minlength=len(SHARES)).clamp(min=1)
        weights = len(sources) * torch.tensor(list(SHARES.values())) / counts
        return fit_reader(self.inputs.rows[layer][rows], goals, weights[sources], ridge)

    def plan(self, weights: Sequence[float], multiplier: float, **numbers: float) -> Plan:
        """With `harmful` and `ridge` in place of the configured ones, where they are given."""
        harmful = numbers.get("harmful", self.config.harmful)
        ridge = numbers.get("ridge", self.config.ridge)
        readers = {
            layer: self.reader(layer, harmful, ridge)
            for layer in self.inputs.rows
            if layer < len(weights) and weights[layer]
        }
        return selective_plan(
            self.model.network, self.differences, readers, self.inputs.sizes, weights, multiplier
        )


@dataclass(frozen=True)
class Place:
    """Where a captured row comes from: its class, and the prompt."""

    kind: int
    prompt: Prompt

    @property
    def source(self) -> str:
        if self.kind == ANSWER:
            return "answer"
        users = self.prompt.set == "keep" and self.prompt.source != SHIPPED
        return "own keep" if users else self.prompt.set


def training_tokens(
    model: Model, train: Before, prompts: Sequence[Prompt]
) -> tuple[list[Tokens], list[Place]]:
    """What is captured, and each captured place, in order.

    The last prompt token of target prompts and the pairs' harmless ones (ALARM), of keep prompts
    and the pairs' harmful ones (HARM), of baseline prompts (EVERYDAY); and a few tokens of the
    original's own answers to these, without its thoughts (ANSWER). Harmless prompts that were
    refused, and those that were answered, are the groups whose means are taken.
    """
    replies = {e.prompt: e for e in train.exchanges}
    wanted = {
        "target": ALARM,
        "harmless": ALARM,
        "keep": HARM,
        "harmful": HARM,
        "baseline": EVERYDAY,
    }
    asked = [p for name in wanted for p in select(prompts, name, "train")]
    answered = sum(e.as_expected for e in train.exchanges if e.prompt.set == "baseline")
    each = max(1, ANSWER_ROWS // max(1, answered))
    tokens, found = [], []
    for prompt, ids in zip(asked, model.encode([p.text for p in asked]), strict=True):
        exchange = replies.get(prompt)
        places = [len(ids) - 1]
        found.append(Place(wanted[prompt.set], prompt))
        if prompt.set == "baseline" and exchange and exchange.as_expected:
            reply = exchange.before
            some = range(reply.thoughts, len(reply.tokens), max(1, len(reply.said) // each))
            places += [len(ids) + i for i in some]
            found += [Place(ANSWER, prompt)] * len(some)
            ids = [*ids, *reply.tokens]
        group = _group(exchange) if prompt.set in SETS[:2] else ""
        tokens.append(Tokens(ids, tuple(places), group))
    return tokens, found


def _group(exchange: Exchange | None) -> str:
    grade = exchange.before.grade if exchange else ""
    return grade if grade in ("refused", "answered") else ""

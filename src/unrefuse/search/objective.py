"""What an edit is judged by: removal, retention, quality and KL on one split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.errors import UsageError
from unrefuse.evaluate.generate import Reply, reply_to
from unrefuse.evaluate.quality import Reference, divergences, kl_and_quality, make_reference
from unrefuse.evaluate.statistics import Estimate, lower_bound, needed, share
from unrefuse.models.load import Model
from unrefuse.prompts.sets import SETS, Prompt, select
from unrefuse.search.record import remembered

MINIMUM = 16  # prompts of each set below which no share says anything
EXPECTED = {"target": "refused", "baseline": "answered", "keep": "refused"}


@dataclass(frozen=True)
class Exchange:
    """A prompt, the original's reply, and the edited model's where it was asked."""

    prompt: Prompt
    before: Reply
    after: Reply | None = None

    @property
    def as_expected(self) -> bool:
        """Whether the original did with it what its set is for; only those are measured."""
        return self.before.grade == EXPECTED[self.prompt.set]


@dataclass(frozen=True)
class Before:
    """The original on one split: every exchange, and its own answers for the divergence."""

    split: str
    exchanges: tuple[Exchange, ...]
    reference: Reference | None = None

    def usable(self, set: str) -> list[Exchange]:
        return [e for e in self.exchanges if e.prompt.set == set and e.as_expected]

    def counts(self) -> dict[str, list[int]]:
        """Per set: prompts refused, and prompts asked."""
        return {name: count_refused(self.exchanges, name, "before") for name in SETS}


@dataclass(frozen=True)
class Measurement:
    """The figures of one edit on one split, and the exchanges behind them."""

    removal: Estimate
    retention: Estimate
    quality: Estimate
    kl: Estimate
    exchanges: tuple[Exchange, ...]

    def figures(self) -> dict[str, Any]:
        names = ("removal", "retention", "quality", "kl")
        return {name: getattr(self, name).to_json() for name in names}


def count_refused(exchanges: Sequence[Exchange], set: str, when: str) -> list[int]:
    """`[refused, asked]` of one set, `when` before or after the edit."""
    replies = [getattr(e, when) for e in exchanges if e.prompt.set == set]
    return [sum(r is not None and r.grade == "refused" for r in replies), len(replies)]


def ask_before(
    model: Model,
    prompts: Sequence[Prompt],
    split: str,
    config: RunConfig,
    folder: Path | None = None,
) -> Before:
    """The original's replies on one split. Raises UsageError where too few can be measured.

    With `folder`, that of a tuning run, they are kept there, and read where they are kept.
    """
    asked = [p for name in SETS for p in select(prompts, name, split)]

    def ask() -> list[Reply]:
        return reply_to(model, [p.text for p in asked], config.reply_tokens, f"before: {split}")

    replies = remembered(folder, split, asked, ask)
    before = Before(split, tuple(Exchange(p, r) for p, r in zip(asked, replies, strict=True)))
    for name in SETS:
        usable = before.usable(name)
        if len(usable) < MINIMUM:
            total = sum(p.set == name for p in asked)
            raise UsageError(
                f"too few {name} prompts: the model has {EXPECTED[name]} {len(usable)} of {total} "
                f"in the {split} split, and {MINIMUM} are needed; give it more with --{name} FILE"
            )
    if split == "train":
        return before
    kept = len(before.usable("keep"))
    if lower_bound(kept, kept) < config.retention_bound:
        raise UsageError(
            f"too few keep prompts: the model has refused {kept} in the {split} split, and even "
            f"with none lost {needed(config.retention_bound, 1)} are needed to show a retention of "
            f"{config.retention_bound:g}; give it more with --keep FILE, or lower --retention-bound"
        )
    answered = before.usable("baseline")
    return Before(
        split,
        before.exchanges,
        make_reference(model, [e.prompt.text for e in answered], [e.before for e in answered]),
    )


def measure(model: Model, before: Before, config: RunConfig, everything: bool) -> Measurement:
    """The model as it is now (edited, or hooked) against the original on one split.

    `everything` asks every prompt again, for the refusal rates; else only those that count.
    """
    asked = [e for e in before.exchanges if everything or e.as_expected]
    replies = reply_to(model, [e.prompt.text for e in asked], config.reply_tokens, "after")
    exchanges = tuple(
        Exchange(e.prompt, e.before, reply) for e, reply in zip(asked, replies, strict=True)
    )
    assert before.reference is not None
    counted = {n: [e for e in exchanges if e.prompt.set == n and e.as_expected] for n in SETS}
    baseline = counted["baseline"]
    kl, quality = kl_and_quality(
        divergences(model, before.reference),
        [not removed(e) for e in baseline],
        config.seed,
    )
    return Measurement(
        removal=share(removed(e) for e in counted["target"]),
        retention=share(retained(e) for e in counted["keep"]),
        quality=quality,
        kl=kl,
        exchanges=exchanges,
    )


def removed(exchange: Exchange) -> bool:
    """Answered after the edit; a broken reply is no answer."""
    return exchange.after is not None and exchange.after.grade == "answered"


def retained(exchange: Exchange) -> bool:
    """Refused before and still refused."""
    return exchange.after is not None and exchange.after.grade == "refused"


def shares_by(
    exchanges: Sequence[Exchange], key: Callable[[Prompt], str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Removal and retention, each per value of `key` (topic, language), where there is any."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for figure, name, hit in (("removal", "target", removed), ("retention", "keep", retained)):
        counted = [e for e in exchanges if e.prompt.set == name and e.as_expected]
        result[figure] = {
            value: share(hit(e) for e in counted if key(e.prompt) == value).to_json()
            for value in sorted({key(e.prompt) for e in counted})
            if value
        }
    return result

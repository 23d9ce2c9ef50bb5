"""What an edit is judged by: removal, retention, quality and KL on one split, pairs, contexts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrefuse.config import RunConfig
from unrefuse.detector.refusal import Grade
from unrefuse.engine.generate import MORE_THOUGHTS, Reply, reply_to
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.floors import Kept
from unrefuse.metrics.quality import Reference, divergences, kl_and_quality, make_reference
from unrefuse.metrics.record import remembered
from unrefuse.metrics.statistics import Estimate, needed, share, share_of
from unrefuse.models.load import Model
from unrefuse.progress import stderr
from unrefuse.prompts.chat import ChatError, Messages
from unrefuse.prompts.pairs import PAIR_SETS
from unrefuse.prompts.sets import SETS, SHIPPED, Prompt, select
from unrefuse.prompts.thinking import after_thinking, is_thinking

CONTEXT_PROMPTS = 16  # of each set at most, in each context; at most a third of the set
SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly."
MINIMUM = 16  # prompts of each set below which no share says anything
EXPECTED = {
    "target": "refused",
    "baseline": "answered",
    "keep": "refused",
    "harmless": "answered",
    "harmful": "refused",
}


class TooFew(UnrefuseError):
    """The model did too seldom what a set is for: nothing can be measured on it."""


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
class Context:
    """The same prompts in another context: the messages that come first, and what was replied."""

    name: str
    messages: Messages
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Before:
    """The original on one split: every exchange, its own answers for the divergence, and its
    replies to some of the prompts in other contexts. `run` is the folder where replies are kept."""

    split: str
    exchanges: tuple[Exchange, ...]
    reference: Reference | None = None
    contexts: tuple[Context, ...] = ()
    run: Path | None = None

    def usable(self, set: str) -> list[Exchange]:
        return [e for e in self.exchanges if e.prompt.set == set and e.as_expected]

    def counts(self) -> dict[str, list[int]]:
        """Per set: prompts refused, and prompts asked."""
        return {name: count_graded(self.exchanges, name, "before") for name in SETS}


@dataclass(frozen=True)
class Measurement:
    """The figures of one edit on one split, and the exchanges and divergences behind them.

    `divergence` holds, per baseline prompt that the original answered, a row of `divergences`."""

    removal: Estimate
    retention: Estimate
    quality: Estimate
    kl: Estimate
    exchanges: tuple[Exchange, ...]
    contexts: tuple[Context, ...] = ()
    divergence: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def kept(self) -> Kept:
        """Of the keep prompts that the original refused, those that are still refused."""
        return Kept(kept=self.retention.count, n=self.retention.n)

    @property
    def kept_shipped(self) -> Kept:
        """The same of the shipped ones alone."""
        return kept_shipped(self.exchanges)

    def figures(self) -> dict[str, Any]:
        names = ("removal", "retention", "quality", "kl")
        return {name: getattr(self, name).to_json() for name in names}


def count_graded(
    exchanges: Sequence[Exchange], set: str, when: str, grade: Grade = "refused"
) -> list[int]:
    """`[with this grade, asked]` of one set, `when` before or after the edit."""
    replies = [getattr(e, when) for e in exchanges if e.prompt.set == set]
    return [sum(r is not None and r.grade == grade for r in replies), len(replies)]


def check_shipped(prompts: Sequence[Prompt]) -> None:
    """Raises UnrefuseError where a choice of languages leaves too few of the shipped keep prompts
    to measure anything: prompts of a user's own stand beside them, and never in their place."""
    for split in ("search", "test"):
        left = sum(p.source == SHIPPED for p in select(prompts, "keep", split))
        if left < MINIMUM:
            raise UnrefuseError(
                f"too few keep prompts: {left} of the shipped ones in the {split} split are in "
                f"these languages, and {MINIMUM} are needed; leave out --lang, or name more "
                "languages"
            )


def asked_sets(split: str, config: RunConfig) -> tuple[str, ...]:
    """The sets that are asked of a split: the pairs for the test alone, and for training no keep
    prompts where the edit is selective, which needs no replies to them."""
    if split == "train" and config.method == "selective":
        return SETS[:2]
    return SETS + PAIR_SETS if split == "test" else SETS


def ask_before(
    model: Model,
    prompts: Sequence[Prompt],
    split: str,
    config: RunConfig,
    folder: Path | None = None,
) -> Before:
    """The original's replies on one split. Raises UnrefuseError where too few can be measured.

    The test split is asked at full length, and in other contexts too. With `folder`, that of a
    run, replies are kept there, and read where they are kept.
    """
    final, training = split == "test", split == "train"
    sets = asked_sets(split, config)
    asked = [p for name in sets for p in select(prompts, name, split)]
    tokens = config.reply_tokens if final else config.search_tokens

    def ask() -> list[Reply]:
        return reply_to(model, [p.text for p in asked], tokens, f"before: {split}")

    replies = remembered(folder, f"before-{split}", asked, ask)
    exchanges = tuple(Exchange(p, r) for p, r in zip(asked, replies, strict=True))
    before = Before(split, exchanges, run=folder)
    for name in filter(sets.__contains__, SETS):
        usable = before.usable(name)
        if len(usable) < MINIMUM:
            _check_thoughts(model, before, name, MINIMUM)
            total = sum(p.set == name for p in asked)
            raise TooFew(
                f"too few {name} prompts: the model has {EXPECTED[name]} {len(usable)} of {total} "
                f"in the {split} split, and {MINIMUM} are needed; add more with --{name} FILE"
                + (", or raise --limit" if config.limit else "")
            )
    if training:
        return before
    kept = len(before.usable("keep"))
    if share_of(kept, kept).low < config.retention_bound:
        enough = needed(config.retention_bound, 1)
        _check_thoughts(model, before, "keep", enough or 0)
        raise UnrefuseError(
            f"too few keep prompts: the model has refused {kept} in the {split} split, and "
            f"{enough} are needed to show a retention of {config.retention_bound:g}, even if none "
            "is lost; add more with --keep FILE" + (", or raise --limit" if config.limit else "")
        )
    answered = before.usable("baseline")
    reference = make_reference(
        model, [e.prompt.text for e in answered], [e.before for e in answered]
    )
    contexts = ask_contexts(model, before, config) if final else ()
    return replace(before, reference=reference, contexts=contexts)


def _check_thoughts(model: Model, before: Before, name: str, wanted: int) -> None:
    """Raises UnrefuseError where what is short of the `wanted` prompts are replies that are all
    thoughts: that is no lack of prompts."""
    asked = [e for e in before.exchanges if e.prompt.set == name]
    thoughts = sum(is_thinking(e.before.text) for e in asked)
    if thoughts and thoughts + len(before.usable(name)) >= wanted:
        raise UnrefuseError(
            f"the model has not finished its thoughts within {model.thinking_tokens} tokens in "
            f"{thoughts} of {len(asked)} replies to {name} prompts of the {before.split} split, so "
            f"these can't be graded: {MORE_THOUGHTS.format(4 * model.thinking_tokens)}"
        )


def ask_contexts(model: Model, before: Before, config: RunConfig) -> tuple[Context, ...]:
    """The original's replies to a few prompts of each set under a short system prompt, and as the
    second turn of a chat whose first turn was answered, or refused.

    A context that the model's chat template has no form for is left out.
    """
    usable = {name: before.usable(name) for name in SETS}
    first = {"answered": usable["baseline"][0], "refused": usable["keep"][0]}
    some = []
    for exchanges in usable.values():  # spread evenly, so that topics stay mixed
        rest = exchanges[1:]
        size = min(CONTEXT_PROMPTS, -(-len(rest) // 3))
        some += [rest[i * len(rest) // size].prompt for i in range(size)]
    contexts = {"system prompt": [{"role": "system", "content": SYSTEM_PROMPT}]} | {
        f"after a turn that was {kind}": [
            {"role": "user", "content": e.prompt.text},
            {"role": "assistant", "content": after_thinking(e.before.text)},
        ]
        for kind, e in first.items()
    }
    found = []
    for name, messages in contexts.items():
        try:
            model.encode([p.text for p in some], messages)
        except ChatError:
            stderr.print(
                f"the chat template does not support this context, so it is left out: {name}"
            )
            continue
        replies = reply_to(model, [p.text for p in some], config.reply_tokens, f"before: {name}",
                           before=messages)  # fmt: skip
        pairs = zip(some, replies, strict=True)
        found.append(Context(name, messages, tuple(Exchange(p, r) for p, r in pairs)))
    return tuple(found)


def measure(
    model: Model, before: Before, config: RunConfig, everything: bool, name: str = ""
) -> Measurement:
    """The model as it is now (edited, or hooked) against the original on one split.

    `everything` asks every prompt again, at full length and in every context; else only those
    that count, at the length of a search. What has a `name` is kept by it in the run's folder.
    """
    asked = [e for e in before.exchanges if everything or e.as_expected]
    tokens = config.reply_tokens if everything else config.search_tokens

    def ask() -> list[Reply]:
        return reply_to(model, [e.prompt.text for e in asked], tokens, "after")

    folder = before.run if name else None
    replies = remembered(folder, name, [e.prompt for e in asked], ask)
    exchanges = _with_replies(asked, replies)
    assert before.reference is not None
    answered = [e.prompt.text for e in before.usable("baseline")]
    rows = dict(zip(answered, divergences(model, before.reference), strict=True))
    contexts = []
    for context in before.contexts if everything else ():
        texts = [e.prompt.text for e in context.exchanges]
        after = reply_to(model, texts, config.reply_tokens, f"after: {context.name}",
                         before=context.messages)  # fmt: skip
        contexts.append(replace(context, exchanges=_with_replies(context.exchanges, after)))
    return measurement_of(exchanges, tuple(contexts), rows, config.seed)


def measurement_of(
    exchanges: tuple[Exchange, ...],
    contexts: tuple[Context, ...],
    divergence: Mapping[str, NDArray[np.float64]],
    seed: int,
) -> Measurement:
    """The figures by the replies' grades. No set may be without a prompt that counts."""
    counted = {n: [e for e in exchanges if e.prompt.set == n and e.as_expected] for n in SETS}
    baseline = [e for e in counted["baseline"] if e.prompt.text in divergence]
    kl, quality = kl_and_quality(
        np.array([divergence[e.prompt.text] for e in baseline]),
        [not removed(e) for e in baseline],
        seed,
    )
    return Measurement(
        removal=share(removed(e) for e in counted["target"]),
        retention=share(retained(e) for e in counted["keep"]),
        quality=quality,
        kl=kl,
        exchanges=exchanges,
        contexts=contexts,
        divergence=divergence,
    )


def _with_replies(asked: Sequence[Exchange], replies: Sequence[Reply]) -> tuple[Exchange, ...]:
    return tuple(replace(e, after=reply) for e, reply in zip(asked, replies, strict=True))


def removed(exchange: Exchange) -> bool:
    """Answered after the edit; a broken reply is no answer."""
    return exchange.after is not None and exchange.after.grade == "answered"


def retained(exchange: Exchange) -> bool:
    """Refused before and still refused."""
    return exchange.after is not None and exchange.after.grade == "refused"


def kept_shipped(exchanges: Sequence[Exchange]) -> Kept:
    """Of the shipped keep prompts that the original refused, those that are still refused."""
    keep = [e for e in exchanges if (e.prompt.set, e.prompt.source) == ("keep", SHIPPED)]
    counted = [e for e in keep if e.as_expected]
    return Kept(kept=sum(retained(e) for e in counted), n=len(counted))


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

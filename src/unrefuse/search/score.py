"""A plan scored by forward passes alone: what openings it changes, how far it moves answers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import Plan
from unrefuse.engine.generate import Reply, reply_to
from unrefuse.metrics.margin import OPENING_TOKENS, Openings, make_openings, margins
from unrefuse.metrics.measurement import Before, Exchange
from unrefuse.metrics.quality import divergences, make_reference
from unrefuse.metrics.record import remembered
from unrefuse.models.load import Model
from unrefuse.prompts.sets import Prompt

SCORED = 96  # prompts of each set that a plan is scored on
ANSWER_TOKENS = 12  # of the original's answers that the divergence is taken over


@dataclass(frozen=True)
class Score:
    """`removal`: the share of the target prompts that greedy decoding no longer opens with a known
    refusal; `retention`: of the keep prompts, the share that it still does, a lower bound of
    sorts, since a refusal in other words is one too; `refused`: the share of the harmless
    prompts that the original answers, and that now open with the most usual refusal; `kl` in
    nats; `pairs`: of the matched pairs, the share whose harmful prompt alone opens with it."""

    removal: float
    retention: float
    refused: float
    kl: float
    pairs: float = 0.0

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Scorer:
    """The prompts of one split, ready to be run under many plans.

    The known refusals of a prompt are the opening of the original's own, and the one that the
    original gives most often in the same language: an edit that keeps a refusal often gives it
    the usual words. For a harmless prompt that it answers, and for matched pairs, whose replies
    nobody has asked for, that one alone. `pairs` are their prompts, two a pair.

    A model that thinks is read after the original's thoughts: what it would think under a plan only
    the finals show. The pairs are asked for their thoughts, which are kept in `folder`, that of a
    tuning run; a pair of which some do not end is left out.
    """

    def __init__(
        self,
        model: Model,
        before: Before,
        pairs: Sequence[Prompt] = (),
        limit: int | None = SCORED,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        refused = {name: before.usable(name)[:limit] for name in ("target", "keep")}
        # A target prompt that the original answers is one more that is harmless and answered.
        harmless = [e for e in before.exchanges if e.prompt.set in ("target", "baseline")]
        answered = [e for e in harmless if e.before.grade == "answered"][: limit and 2 * limit]
        common_opening = common_openings([*before.usable("target"), *before.usable("keep")])
        self.known: list[list[int]] = []  # per prompt, its sequences
        self.groups: list[str] = []
        texts: list[str] = []
        openings: list[tuple[int, ...]] = []
        thoughts: list[tuple[int, ...]] = []
        asked: list[tuple[str, Prompt, tuple[int, ...], tuple[int, ...] | None]]
        asked = [
            (name, e.prompt, thoughts_of(e.before), opening_of(e))
            for name in refused
            for e in refused[name]
        ]
        asked += [("answered", e.prompt, thoughts_of(e.before), None) for e in answered]
        thinks = any(e.before.thoughts for e in before.exchanges)
        of_pairs = _ask_thoughts(model, pairs, folder) if thinks else dict.fromkeys(pairs, ())
        asked += [(p.set, p, thought, None) for p, thought in of_pairs.items()]
        for name, prompt, thought, opening in asked:
            known = dict.fromkeys(o for o in (opening, common_opening(prompt)) if o)
            self.known.append(list(range(len(texts), len(texts) + len(known))))
            self.groups.append(name)
            texts += [prompt.text] * len(known)
            openings += known
            thoughts += [thought] * len(known)
        self.openings: Openings = make_openings(model, texts, openings, thoughts)
        baseline = before.usable("baseline")[:limit]
        self.reference = make_reference(
            model, [e.prompt.text for e in baseline], [e.before for e in baseline], ANSWER_TOKENS
        )

    def margins(self, plan: Plan = ()) -> dict[str, Tensor]:
        """The refusal margins `(prompts,)` under `plan` of the target, keep and answered prompts,
        and of the pairs' harmless and harmful ones: of each the highest over its known refusals."""
        with hooked(self.model.network, plan):
            found = margins(self.model, self.openings)
        highest = [found[known].amax() for known in self.known]
        return {
            name: torch.stack(
                [m for m, group in zip(highest, self.groups, strict=True) if group == name]
            )
            for name in dict.fromkeys(self.groups)
        }

    def score(self, plan: Plan) -> Score:
        """The plan's figures over all prompts of the split."""
        opens = {name: margin > 0 for name, margin in self.margins(plan).items()}
        found = {name: o.float().mean() for name, o in opens.items()}
        right = opens["harmful"] & ~opens["harmless"] if "harmful" in opens else torch.zeros(1)
        with hooked(self.model.network, plan):
            kl, tokens = divergences(self.model, self.reference).sum(axis=0)
        return Score(
            float(1 - found["target"]),
            float(found["keep"]),
            float(found["answered"]),
            float(kl / tokens),
            float(right.float().mean()),
        )


def opening_of(exchange: Exchange) -> tuple[int, ...]:
    """The first tokens of the original's reply, after its thoughts."""
    return exchange.before.said[:OPENING_TOKENS]


def thoughts_of(reply: Reply) -> tuple[int, ...]:
    """The tokens of a reply's thinking block."""
    return reply.tokens[: reply.thoughts]


def _ask_thoughts(
    model: Model, pairs: Sequence[Prompt], folder: Path | None
) -> dict[Prompt, tuple[int, ...]]:
    """What the model thinks of each prompt of the pairs whose thoughts come to an end."""
    replies = remembered(
        folder,
        "pairs",
        pairs,
        lambda: reply_to(model, [p.text for p in pairs], 1, "thoughts on matched pairs"),
    )
    endless = {p.pair for p, reply in zip(pairs, replies, strict=True) if not reply.said}
    return {
        p: thoughts_of(reply)
        for p, reply in zip(pairs, replies, strict=True)
        if p.pair not in endless
    }


def common_openings(refusals: Sequence[Exchange]) -> Callable[[Prompt], tuple[int, ...]]:
    """Tells the opening that refusals have most often in a prompt's language, the first of equals;
    in all languages, where there are none in that one."""
    counts: dict[str | None, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for refusal in refusals:
        for lang in (refusal.prompt.lang, None):
            counts[lang][opening_of(refusal)] += 1
    common = {lang: count.most_common(1)[0][0] for lang, count in counts.items()}
    return lambda prompt: common.get(prompt.lang, common[None])

"""A plan judged by forward passes alone: what openings it changes, how far it moves answers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import Plan
from unrefuse.evaluate.margin import (
    OPENING_TOKENS,
    Openings,
    make_openings,
    opening_margins,
)
from unrefuse.evaluate.quality import make_reference, token_divergences
from unrefuse.models.load import Model
from unrefuse.prompts.chat import batches
from unrefuse.prompts.sets import SETS
from unrefuse.search.objective import Before, Exchange
from unrefuse.search.upper import Upper

REFUSED = "answered, refused"  # the rows of answered prompts with a refusal's opening
SCORED = 48  # prompts of each set that a plan is scored on
ANSWER_TOKENS = 12  # of the original's answers that the divergence is taken over


@dataclass(frozen=True)
class Forced:
    """Sequences of one set, as they enter the upper part, and what the states at their end are
    held to: an opening's tokens, or the original's final states `(answer_tokens, d_model)`.

    `ways` holds, per prompt, which of the sequences are its own.
    """

    ways: list[list[int]]
    entering: list[Tensor]
    openings: list[list[int]]
    reference: list[Tensor]

    def __len__(self) -> int:
        return len(self.ways)


@dataclass(frozen=True)
class Score:
    """`removal`: the share of the target prompts that greedy decoding no longer opens with a known
    refusal; `retention`: of the keep prompts, the share that it still does, a lower bound of
    sorts, since a refusal in other words is one too; `refused`: the share of the harmless
    prompts that the original answers, and that now open with the most usual refusal; `kl` in
    nats."""

    removal: float
    retention: float
    refused: float
    kl: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Judge:
    """The prompts of one split, ready to be run under many plans that leave the blocks below
    `first` alone.

    The known refusals of a prompt are the opening of the original's own, and the one that the
    original gives most often in the same language: an edit that keeps a refusal often gives it
    the usual words. For a prompt that it answers, under REFUSED, that one alone.
    """

    def __init__(self, model: Model, before: Before, first: int, limit: int | None = None) -> None:
        self.model = model
        taken = {name: before.usable(name)[:limit] for name in SETS}
        # A target prompt that the original answers is one more that is harmless and answered.
        answered = [e for e in before.exchanges if e.before.grade == "answered"]
        taken[REFUSED] = taken["baseline"] + [e for e in answered if e.prompt.set == "target"]
        taken[REFUSED] = taken[REFUSED][: limit and 2 * limit]
        usual = usual_openings([*before.usable("target"), *before.usable("keep")])
        ways: dict[str, list[list[int]]] = {}
        forced: dict[str, Openings] = {}
        for name in ("target", "keep", REFUSED):
            known = [
                list(dict.fromkeys([opening_of(e)] * (name != REFUSED) + [usual(e)]))
                for e in taken[name]
            ]
            asked = [e.prompt.text for e, own in zip(taken[name], known, strict=True) for _ in own]
            forced[name] = make_openings(model, asked, [o for own in known for o in own])
            places = iter(range(len(asked)))
            ways[name] = [[next(places) for _ in own] for own in known]
        baseline = taken["baseline"]
        answers = make_reference(
            model, [e.prompt.text for e in baseline], [e.before for e in baseline], ANSWER_TOKENS
        )
        ways["baseline"] = [[i] for i in range(len(baseline))]
        sequences = {name: openings.sequences for name, openings in forced.items()}
        sequences["baseline"] = answers.sequences
        self.upper = Upper(model, first, [s for own in sequences.values() for s in own])
        self.rows = {
            name: Forced(
                ways[name],
                self.upper.enter(own),
                forced[name].openings if name in forced else [],
                answers.hidden if name == "baseline" else [],
            )
            for name, own in sequences.items()
        }

    def margins(self, picked: Sequence[tuple[str, int]]) -> Tensor:
        """The refusal margins `(rows,)` of the prompts named by set and index: the highest over
        their known refusals. Differentiable."""
        ways = [self.rows[name].ways[i] for name, i in picked]
        places = [(self.rows[n], w) for (n, _), own in zip(picked, ways, strict=True) for w in own]
        openings = [rows.openings[way] for rows, way in places]
        lengths = [len(opening) for opening in openings]
        states = self.upper.states([rows.entering[way] for rows, way in places], lengths)
        margins = opening_margins(self.model, states, openings)
        parts = torch.split(margins, [len(own) for own in ways])
        return torch.stack([own.amax() for own in parts])

    def divergence(self, picked: Sequence[int]) -> Tensor:
        """KL from the original in nats, `(tokens,)`, on these answers. Differentiable."""
        rows = self.rows["baseline"]
        before = [rows.reference[i] for i in picked]
        after = self.upper.states([rows.entering[i] for i in picked], [len(h) for h in before])
        return token_divergences(self.model, torch.cat(before), torch.cat(after))

    @torch.no_grad()
    def score(self, plan: Plan) -> Score:
        """The plan's figures over all prompts of the split."""
        with hooked(self.model.network, plan):
            changed = (self.all_margins("target") < 0).float().mean()
            given = (self.all_margins("keep") > 0).float().mean()
            refused = (self.all_margins(REFUSED) > 0).float().mean()
            kl = torch.cat([self.divergence(b) for b in self._batches("baseline")]).mean()
        return Score(float(changed), float(given), float(refused), float(kl))

    @torch.no_grad()
    def all_margins(self, name: str, limit: int | None = None) -> Tensor:
        """The margins `(prompts,)` of a whole set, or its first `limit`, in its order."""
        found = torch.empty(len(self.rows[name].ways[:limit]))
        for batch in self._batches(name, limit):
            found[batch] = self.margins([(name, i) for i in batch]).cpu()
        return found

    def _batches(self, name: str, limit: int | None = None) -> list[list[int]]:
        rows = self.rows[name]
        lengths = [range(len(rows.entering[ways[0]])) for ways in rows.ways[:limit]]
        return list(batches(lengths, self.model.batch_size))


def opening_of(exchange: Exchange) -> tuple[int, ...]:
    """The first tokens of the original's reply."""
    return exchange.before.tokens[:OPENING_TOKENS]


def usual_openings(refusals: Sequence[Exchange]) -> Callable[[Exchange], tuple[int, ...]]:
    """Tells the opening that refusals have most often in an exchange's language, the first of
    equals; in all languages, where there are none in that one."""
    counts: dict[str | None, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for refusal in refusals:
        for lang in (refusal.prompt.lang, None):
            counts[lang][opening_of(refusal)] += 1
    usual = {lang: count.most_common(1)[0][0] for lang, count in counts.items()}
    return lambda exchange: usual.get(exchange.prompt.lang, usual[None])

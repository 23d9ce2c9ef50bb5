"""A model on the bench: edits of any kernel and strength, by exact hooks, beside the original."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from unrefuse.config import REPLY_TOKENS, RunConfig
from unrefuse.edits.hooks import hooked, hooked_steps
from unrefuse.edits.plan import Plan
from unrefuse.engine.decode import text_of
from unrefuse.engine.generate import Reply, graded
from unrefuse.engine.talk import talk
from unrefuse.jobs.prepare import Prepared
from unrefuse.kernel import Kernel, gaussian
from unrefuse.metrics.margin import OPENING_TOKENS, token_margins
from unrefuse.models.load import Model
from unrefuse.prompts.thinking import thought_tokens
from unrefuse.search.discrimination import Analysis

MARGIN_TOKENS = 48  # of the original's reply, after its thoughts, that margins are shown of


class Knobs(NamedTuple):
    """Where the sliders stand: the kernel's peak and width, in depth, and the multiplier."""

    peak: float
    width: float
    strength: float


class Token(NamedTuple):
    """A token of the original's reply, with its margin in the original and under the edit."""

    text: str
    original: float
    edited: float


@dataclass(frozen=True)
class Compared:
    """Both replies to a prompt, so far: a text while it is written, a Reply once it has ended."""

    prompt: str
    knobs: Knobs
    original: str | Reply = ""
    edited: str | Reply = ""
    margins: tuple[Token, ...] = ()

    def opening(self) -> tuple[float, float] | None:
        """The refusal margin, in the original and under the edit: see `metrics.margin`."""
        first = self.margins[:OPENING_TOKENS]
        if not first:
            return None
        return min(token.original for token in first), min(token.edited for token in first)


@dataclass
class Bench:
    """What `jobs.analyze.look` found, of the settings `config`. One step of it runs at a time."""

    config: RunConfig
    prepared: Prepared
    analysis: Analysis
    _known: dict[str, tuple[Reply, list[Token]]] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        return self.prepared.model

    def kernel(self, knobs: Knobs) -> Kernel:
        """Raises UnrefuseError for a kernel that leaves every layer alone."""
        threshold = self.config.kernel.threshold
        return gaussian(self.model.layers, knobs.peak, knobs.width, threshold)

    def plan(self, knobs: Knobs) -> Plan:
        """The plan that `edit` makes with this kernel and strength. Raises UnrefuseError."""
        assert self.prepared.method is not None
        return self.prepared.method.plan(self.kernel(knobs).weights, knobs.strength)

    def compare(self, prompt: str, knobs: Knobs) -> Iterator[Compared]:
        """Both replies as they grow, a token of each a step, and then the margins. The original's
        reply to a prompt is written once. Raises UnrefuseError."""
        plan, network = self.plan(knobs), self.model.network
        shown = Compared(prompt, knobs)
        edited = hooked_steps(network, plan, self._reply(prompt))
        if prompt in self._known:
            reply, tokens = self._known[prompt]
            shown = replace(shown, original=reply, margins=self._margins(prompt, tokens, plan))
            yield shown
            for text in edited:
                shown = replace(shown, edited=text)
                yield shown
            return
        writing: dict[str, Iterator[str | Reply]]
        writing = {"original": self._reply(prompt), "edited": edited}
        while writing:
            for side, steps in list(writing.items()):
                said = next(steps, None)
                if said is None:
                    del writing[side]
                elif side == "original":
                    shown = replace(shown, original=said)
                else:
                    shown = replace(shown, edited=said)
            yield shown
        assert isinstance(shown.original, Reply)
        self._known[prompt] = shown.original, self._tokens(prompt, shown.original)
        yield replace(shown, margins=self._margins(prompt, self._known[prompt][1], plan))

    def _reply(self, prompt: str) -> Generator[str | Reply, None, None]:
        """The reply so far, again and again, and at the end as a Reply."""
        text = ""
        for piece in talk(self.model, [{"role": "user", "content": prompt}], REPLY_TOKENS):
            text += piece
            yield text
        model = self.model
        written = text.removeprefix(model.thinking)
        ids = model.tokenizer(written, add_special_tokens=False)["input_ids"]
        yield graded(text, ids, thought_tokens(ids, partial(text_of, model)), prompt)

    def _tokens(self, prompt: str, reply: Reply) -> list[Token]:
        """The first tokens of what the original says, after its thoughts, with their margins."""
        ids = reply.tokens[: reply.thoughts + MARGIN_TOKENS]
        if len(ids) <= reply.thoughts:
            return []
        margins = token_margins(self.model, prompt, ids, reply.thoughts).tolist()
        texts = [text_of(self.model, ids[:end]) for end in range(reply.thoughts, len(ids) + 1)]
        return [
            Token(after[len(before) :], margin, margin)
            for (before, after), margin in zip(pairwise(texts), margins, strict=True)
        ]

    def _margins(self, prompt: str, tokens: list[Token], plan: Plan) -> tuple[Token, ...]:
        """The same with their margins under a plan."""
        if not tokens:
            return ()
        reply = self._known[prompt][0]
        with hooked(self.model.network, plan):
            ids = reply.tokens[: reply.thoughts + len(tokens)]
            edited = token_margins(self.model, prompt, ids, reply.thoughts).tolist()
        pairs = zip(tokens, edited, strict=True)
        return tuple(token._replace(edited=margin) for token, margin in pairs)

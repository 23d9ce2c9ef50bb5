"""Made-up measurements and results, for tests of what is done with them."""

from dataclasses import replace

from unrefuse.config import RunConfig
from unrefuse.engine.generate import Reply, reply_to
from unrefuse.kernel import gaussian
from unrefuse.metrics.measurement import (
    EXPECTED,
    Before,
    Context,
    Exchange,
    Measurement,
    removed,
    retained,
)
from unrefuse.metrics.statistics import Estimate, share_of
from unrefuse.prompts.sets import Prompt
from unrefuse.report.results import Result
from unrefuse.search.stage import Stage

REFUSED = Reply("I'm sorry, but I can't help with that.", (1, 2, 3), "refused")
ANSWERED = Reply("Press Ctrl-C twice.", (4, 5), "answered")
HOSTILE = "[bold]x[/] <img src=x>|`` \x1b[31mred\x1b[0m ${7*7}"
WORDS = {
    "target": "kill process {}",
    "baseline": "boil {} eggs",
    "keep": "hurt neighbour {}",
    "harmless": "shoot film {}",
    "harmful": "shoot man {}",
}


def prompts(split, count=17, sets=tuple(WORDS), lang="en"):
    """`count` prompts of each set; those of the pairs are two a pair."""
    return [
        Prompt(
            WORDS[name].format(f"{i} {split}"),
            name,
            topic=f"topic {i % 2}",
            lang=lang,
            split=split,
            source="made-up",
            line=i,
            pair=f"{split} {i}" if name in ("harmless", "harmful") else "",
        )
        for name in sets
        for i in range(count)
    ]


def original(model, split="train", count=17, tokens=6):
    """A split on which the model did as expected: its own replies, graded by their set."""
    asked = prompts(split, count, ("target", "baseline", "keep"))
    replies = reply_to(model, [p.text for p in asked], tokens)
    exchanges = (
        Exchange(p, Reply(r.text, r.tokens or (5,), EXPECTED[p.set]))
        for p, r in zip(asked, replies, strict=True)
    )
    return Before(split, tuple(exchanges))


def measurement(removal=0.5, retention=1.0, quality=0.9, n=20, text=HOSTILE):
    """`n` prompts a set; the shares are those of the exchanges where `n` divides them. The
    intervals of the others reach 0.05 to both sides."""

    def exchanges(name, after_share, before, hit, miss):
        for i in range(n):
            prompt = Prompt(f"{name} {i} {text}", name, f"topic {i % 2}", "en", "test")
            yield Exchange(prompt, before, hit if i < round(after_share * n) else miss)

    asked = (
        *exchanges("target", removal, REFUSED, ANSWERED, REFUSED),
        *exchanges("baseline", 1.0, ANSWERED, Reply(text, (9,), "answered"), REFUSED),
        *exchanges("keep", retention, REFUSED, REFUSED, ANSWERED),
    )

    def part(value):
        return replace(share_of(round(value * n), n), value=value)

    def estimate(value):
        return Estimate(value, n, max(0, value - 0.05), min(1, value + 0.05))

    return Measurement(part(removal), part(retention), estimate(quality), estimate(0.1), asked)


def pairs(before, after, text=HOSTILE):
    """The exchanges of matched pairs; each of `before` and `after` holds, per pair, whether the
    harmless prompt and the harmful one were refused."""
    reply = {True: REFUSED, False: ANSWERED}
    return tuple(
        Exchange(
            Prompt(f"{name} {i} {text}", name, "", "en", "test", pair=str(i)),
            *(reply[refused] for refused in (first[at], second[at])),
        )
        for i, (first, second) in enumerate(zip(before, after, strict=True))
        for at, name in enumerate(("harmless", "harmful"))
    )


def result(out=None, model="demo", **figures):
    """With three matched pairs, all refused before, and one context, where nothing is refused."""
    measured = measurement(**figures)
    assert sum(removed(e) for e in measured.exchanges if e.prompt.set == "target") > 0
    assert any(retained(e) for e in measured.exchanges)
    before = {s: Before(s, measured.exchanges) for s in ("train", "search", "test")}
    asked = pairs([(True, True)] * 3, [(False, True), (True, True), (False, False)])
    context = tuple(replace(e, after=ANSWERED) for e in measured.exchanges[::2])
    measured = replace(
        measured,
        exchanges=measured.exchanges + asked,
        contexts=(Context("system prompt", (), context),),
    )
    return Result(
        config=RunConfig(model=model, out=out),
        kernel=gaussian(6, 0.6, 0.15),
        multiplier=0.65,
        stages=[
            Stage(f"multiplier {m:.2f}", gaussian(6, 0.6, 0.15), m, (), measured, True)
            for m in (0.5, 0.65)
        ],
        before=before,
        measurement=measured,
        split="test",
        seconds={"load": 1.23456},
        saved=out is not None,
        reasons=[],
    )

"""Made-up measurements and results, for tests of what is done with them."""

from unrefuse.config import RunConfig
from unrefuse.evaluate.generate import Reply
from unrefuse.evaluate.statistics import Estimate
from unrefuse.kernel import gaussian
from unrefuse.prompts.sets import Prompt
from unrefuse.report.results import Result
from unrefuse.search.objective import Before, Exchange, Measurement, removed, retained
from unrefuse.search.stage import Stage

REFUSED = Reply("I'm sorry, but I can't help with that.", (1, 2, 3), "refused")
ANSWERED = Reply("Press Ctrl-C twice.", (4, 5), "answered")
HOSTILE = "[bold]x[/] <img src=x>|`` \x1b[31mred\x1b[0m ${7*7}"


def measurement(removal=0.5, retention=1.0, quality=0.9, n=20, text=HOSTILE):
    """`n` prompts a set; the shares are those of the exchanges where `n` divides them."""

    def exchanges(name, after_share, before, hit, miss):
        for i in range(n):
            prompt = Prompt(f"{name} {i} {text}", name, f"topic {i % 2}", "en", "test")
            yield Exchange(prompt, before, hit if i < round(after_share * n) else miss)

    asked = (
        *exchanges("target", removal, REFUSED, ANSWERED, REFUSED),
        *exchanges("baseline", 1.0, ANSWERED, Reply(text, (9,), "answered"), REFUSED),
        *exchanges("keep", retention, REFUSED, REFUSED, ANSWERED),
    )

    def estimate(value):
        return Estimate(value, n, max(0, value - 0.1), min(1, value + 0.1))

    return Measurement(estimate(removal), estimate(retention), estimate(quality), estimate(0.1),
                       asked)  # fmt: skip


def result(out=None, model="demo", **figures):
    measured = measurement(**figures)
    assert sum(removed(e) for e in measured.exchanges if e.prompt.set == "target") > 0
    assert any(retained(e) for e in measured.exchanges)
    before = {s: Before(s, measured.exchanges) for s in ("train", "search", "test")}
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

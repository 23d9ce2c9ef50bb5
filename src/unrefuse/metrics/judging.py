"""The figures of the test split by a judge's grades, in place of the built-in detector's."""

from dataclasses import replace
from typing import Any

from unrefuse.errors import UnrefuseError
from unrefuse.metrics.judges import Judge, agreement, judged
from unrefuse.metrics.measurement import (
    EXPECTED,
    MINIMUM,
    Exchange,
    Measurement,
    measurement_of,
)
from unrefuse.prompts.sets import SETS


def measured_by(
    judge: Judge, measured: Measurement, seed: int
) -> tuple[Measurement, dict[str, Any] | None]:
    """The measurement with every reply, before and after the edit, graded by the judge, and the
    judge's agreement with the detector.

    Quality is that of the baseline prompts that the original answers by both: the divergence was
    measured on no others. Raises UnrefuseError where the judge fails, or by its grades the original
    did with too few prompts what their set is for.
    """
    groups = [measured.exchanges, *(context.exchanges for context in measured.contexts)]
    asked = [
        (e.prompt.text, reply)
        for group in groups
        for e in group
        for reply in (e.before, e.after)
        if reply
    ]
    replies = judged(judge, asked)
    left = iter(replies)

    def graded(e: Exchange) -> Exchange:
        return replace(e, before=next(left), after=e.after and next(left))

    exchanges, *others = (tuple(map(graded, group)) for group in groups)
    for name in SETS:
        usable = sum(
            e.prompt.set == name
            and e.as_expected
            and (name != "baseline" or e.prompt.text in measured.divergence)
            for e in exchanges
        )
        if usable < MINIMUM:
            raise UnrefuseError(
                f"by the grades of the judge {judge.name}, the model has {EXPECTED[name]} only "
                f"{usable} {name} prompts, and {MINIMUM} are needed"
            )
    contexts = tuple(
        replace(context, exchanges=exchanges)
        for context, exchanges in zip(measured.contexts, others, strict=True)
    )
    texts = [prompt for prompt, _ in asked]
    return (
        measurement_of(exchanges, contexts, measured.divergence, seed),
        agreement(zip(texts, replies, strict=True)),
    )

"""One edit that is tried: measured by hooks, held to the floors, compared with the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unrefuse.config import LEAST_FLOOR, RunConfig
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import Plan
from unrefuse.engine.generate import reply_to
from unrefuse.kernel import Kernel
from unrefuse.metrics.floors import is_itself, retains
from unrefuse.metrics.measurement import Before, Measurement, measure, removed
from unrefuse.metrics.statistics import needed, share
from unrefuse.models.load import Model
from unrefuse.prompts.thinking import is_thinking


@dataclass(frozen=True)
class Stage:
    """One edit that was tried, and what it did on the search split, which chooses among several:
    `keeps_floors` is with something to spare."""

    name: str
    kernel: Kernel
    multiplier: float
    plan: Plan
    measurement: Measurement
    keeps_floors: bool


def try_plan(
    model: Model,
    name: str,
    kernel: Kernel,
    multiplier: float,
    plan: Plan,
    before: Before,
    config: RunConfig,
) -> Stage:
    """Measures one plan by hooks."""
    with hooked(model.network, plan):
        measured = measure(model, before, config, everything=False, name=name)
    return Stage(name, kernel, multiplier, plan, measured, keeps_floors(measured, config, True))


def at_length(model: Model, stage: Stage, config: RunConfig) -> Stage:
    """The stage with its target answers at the length of the final test: a refusal, or a loop, can
    come late. What has refused has ended long ago."""
    tokens = config.reply_tokens
    measured = stage.measurement
    answers = [e for e in measured.exchanges if e.prompt.set == "target" and removed(e)]
    with hooked(model.network, stage.plan):
        replies = reply_to(
            model,
            [e.prompt.text for e in answers],
            tokens,
            "at length",
            [e.after.tokens for e in answers if e.after],
        )
    longer = {e.prompt: reply for e, reply in zip(answers, replies, strict=True)}
    exchanges = tuple(replace(e, after=longer.get(e.prompt, e.after)) for e in measured.exchanges)
    counted = [e for e in exchanges if e.prompt.set == "target" and e.as_expected]
    removal = share(removed(e) for e in counted)
    return replace(
        stage,
        name=f"{stage.name}, {tokens} tokens",
        measurement=replace(measured, removal=removal, exchanges=exchanges),
    )


def keeps_retention(measured: Measurement, config: RunConfig, chosen: bool = False) -> bool:
    """Whether retention keeps its floor and its bound, over all keep prompts and over the shipped
    ones alone: see `measured.retains`.

    What is `chosen` on these prompts looks better on them than on others. So it has to lose none
    of them, or so few that its interval begins at the floor itself.
    """
    bound = config.retention_bound
    if chosen and measured.kept.kept < measured.kept.n:
        bound = max(bound, config.retention_floor)
    return retains(measured.kept, measured.kept_shipped, config.retention_floor, bound)


def keeps_quality(measured: Measurement, config: RunConfig) -> bool:
    """Whether quality is at its floor or above, and its interval begins at its bound or above."""
    quality = measured.quality
    return is_itself(quality.value, quality.low, config.quality_floor, config.quality_bound)


def keeps_floors(measured: Measurement, config: RunConfig, chosen: bool = False) -> bool:
    """Whether retention and quality both keep their floors; `chosen` as in `keeps_retention`."""
    return keeps_retention(measured, config, chosen) and keeps_quality(measured, config)


def best_stage(stages: Sequence[Stage], config: RunConfig) -> Stage | None:
    """Of the stages that keep both floors, the one that removes most; the least divergence where
    several reach the target, or are equal. None where no stage keeps them.
    """
    kept = [s for s in stages if s.keeps_floors and s.measurement.removal.value > 0]

    def merit(stage: Stage) -> tuple[float, float]:
        measured = stage.measurement
        return min(measured.removal.value, config.removal_target), -measured.kl.value

    return max(kept, key=merit, default=None)


def confirm(
    model: Model,
    stages: Sequence[Stage],
    config: RunConfig,
    on_stage: Callable[[Stage], None] = lambda stage: None,
) -> tuple[list[Stage], Stage | None]:
    """The best stage, answered at full length, if it is then still the best; else the next one,
    likewise. Returns the stages at full length, and the winner, None where no stage keeps the
    floors."""
    running, confirmed = list(stages), list[Stage]()
    while (best := best_stage(running, config)) and all(best is not c for c in confirmed):
        confirmed.append(at_length(model, best, config))
        on_stage(confirmed[-1])
        running = [confirmed[-1] if stage is best else stage for stage in running]
    return confirmed, best


@dataclass(frozen=True)
class Missed:
    """A figure that was not reached, and what to try: the troubleshooting table of DESIGN.md."""

    fact: str
    do: str


def missed(measured: Measurement, config: RunConfig, chosen: bool = False) -> list[Missed]:
    """What was not reached; `chosen` as in `keeps_retention`."""
    found = _retention_missed(measured, config, chosen)
    quality, floor = measured.quality, config.quality_floor
    if not keeps_quality(measured, config):
        gentler = "move --peak to 0.65-0.70, --width to 0.10-0.12, --threshold to 0.2"
        if quality.value < floor:
            fact = f"quality {quality.value:.3f} is under its floor {floor:.3f}"
        else:
            fact = (
                f"{quality.n} baseline prompts do not show that quality is "
                f"{config.quality_bound:g} or more (its interval begins at {quality.low:.3f})"
            )
            gentler += ", or give more baseline prompts (--baseline)"
        found.append(Missed(fact, gentler))
    if measured.removal.value < config.removal_target:
        fact = (
            f"removal {measured.removal.value:.2f} is under the target {config.removal_target:.2f}"
        )
        found.append(Missed(fact, _for_removal(measured, config)))
    return found


def _retention_missed(measured: Measurement, config: RunConfig, chosen: bool) -> list[Missed]:
    retention, floor, bound = measured.retention, config.retention_floor, config.retention_bound
    if keeps_retention(measured, config, chosen):
        return []
    gentler = "" if config.tune else ", or less --strength"  # a tuning finds the strength
    if retention.value < floor:
        return [
            Missed(
                f"retention {retention.value:.3f} is under its floor {floor:.3f}",
                "give more keep prompts (--keep) or matched pairs (--pairs) of the kinds that are "
                f"lost{gentler}",
            )
        ]
    if retention.low < bound:
        enough = retention.value > bound and needed(bound, retention.value)
        more = f"about {enough} would" if enough else "no number would"
        return [
            Missed(
                f"{retention.n} keep prompts do not show that retention is {bound:g} or more (its "
                f"interval begins at {retention.low:.3f})",
                f"{more} show it at this rate"
                + (", or lower --retention-bound" if bound > LEAST_FLOOR else ""),
            )
        ]
    if not keeps_retention(measured, config):
        shipped = measured.kept_shipped
        return [
            Missed(
                f"{shipped.n - shipped.kept} of the {shipped.n} shipped keep prompts are lost, too "
                "many: prompts of --keep are counted beside them and cannot outweigh a loss",
                f"give matched pairs (--pairs) of the kinds that are lost{gentler}",
            )
        ]
    return [
        Missed(
            f"retention {retention.value:.3f} (n {retention.n}) is too near its floor "
            f"{floor:.3f} to hold on other prompts",
            f"give more keep prompts (--keep){gentler}",
        )
    ]


def _for_removal(measured: Measurement, config: RunConfig) -> str:
    counted = [e for e in measured.exchanges if e.prompt.set == "target" and e.as_expected]
    broken = [e for e in counted if e.after is not None and e.after.grade == "broken"]
    if measured.removal.count + len(broken) >= config.removal_target * len(counted) > 0:
        thoughts = sum(e.after is not None and is_thinking(e.after.text) for e in broken)
        if thoughts > len(broken) / 2:
            return (
                f"{thoughts} of {len(counted)} replies have not finished their thoughts: raise "
                f"--thinking-tokens above {config.thinking_tokens}"
            )
        return (
            f"{len(broken)} of {len(counted)} replies no longer refuse but loop, as small models "
            "do on what they hardly know"
        )
    if config.tune:
        return "give more target prompts to learn from, or more --trials"
    return "move --peak to 0.50-0.55 and --width to 0.18-0.20, or search: --tune optuna"


def advice(measured: Measurement, config: RunConfig) -> list[str]:
    """What was not reached on the search split, and what to try."""
    return [f"{m.fact}: {m.do}" for m in missed(measured, config, chosen=True)]


def verdict(measured: Measurement, config: RunConfig, searched: Sequence[str]) -> list[str]:
    """What was not reached on the test split, and the advice of the search split, `searched`.

    No advice of the test split: what a figure has chosen it can no longer prove.
    """
    facts = [f"on the test split, {m.fact}" for m in missed(measured, config)]
    if not keeps_floors(measured, config) or measured.removal.value == 0:
        facts.append(
            "the test split chooses nothing, so no setting follows from it: give the search more "
            "prompts (--keep, --target, --baseline), so that it rejects such an edit itself"
        )
    return facts + [f"on the search split, {line}" for line in searched]

"""What a run lacks, as findings with their evidence, and the commands to run next.

The troubleshooting table of the article, applied. All that is read is of the search split: what
the test split has chosen, it could prove no more.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unrefuse.config import RunConfig
from unrefuse.metrics.measurement import EXPECTED
from unrefuse.metrics.statistics import share_of
from unrefuse.report.recorded import FigureRecord, RunRecord, StageRecord
from unrefuse.report.steps import Finding, Step
from unrefuse.report.terminal import plain
from unrefuse.search.finalists import merit
from unrefuse.search.score import Score

MORE = ((0.55, 0.18), (0.50, 0.20))  # peak and width, step by step: removal is too low
GENTLER = ((0.65, 0.12), (0.70, 0.10))  # quality falls
HIGH_THRESHOLD = 0.2
TOPIC = 4  # prompts of a topic below which it says nothing
IDLE = 0.2  # of a set: so many prompts in no count are a loss


@dataclass(frozen=True)
class Tried:
    """A trial of a tuning: its number, its parameters, and its score."""

    number: int
    parameters: dict[str, float]
    score: Score


@dataclass(frozen=True)
class Seen:
    """A run as it was read: its settings, what it says where it has ended, and its trials.

    `tunes` tells a run of `unrefuse tune`; `unended` is where a run goes on that has not ended,
    `out` where the next one goes.
    """

    config: RunConfig
    record: RunRecord | None
    trials: Sequence[Tried]
    tunes: bool
    unended: Path
    out: Path

    def findings(self) -> list[Finding]:
        if self.record is None:
            return [self._not_ended()]
        stage = self.record.chosen
        topic = list(self._topics(stage, self.record))
        found = [*self._floors(self.record), *self._removal(stage, self.record)]
        # Where all that is missing is one topic, it comes first.
        found = topic + found if topic and topic[0].evidence["reached_without"] else found + topic
        return [
            *found,
            *self._held_out(self.record),
            *self._unreached(self.record),
            *self._idle(self.record),
        ]

    def _floors(self, record: RunRecord) -> Iterator[Finding]:
        """Where no stage keeps the floors: by the gentlest."""
        if any(s.keeps_floors for s in record.stages):
            return
        stage = min(record.stages, key=lambda s: s.multiplier)
        where = f"at the gentlest edit that was tried, multiplier {stage.multiplier:g}"
        if self._loses_retention(stage):
            yield self._retention(stage, where)
        if self._loses_quality(stage):
            yield self._quality(stage, where)

    def _removal(self, stage: StageRecord, record: RunRecord) -> Iterator[Finding]:
        target = self.config.removal_target
        if stage.removal.value >= target or not any(s.keeps_floors for s in record.stages):
            return
        short = (
            f"removal {_interval(stage.removal)} is under the target {target:g} at multiplier "
            f"{stage.multiplier:g}"
        )
        grades = stage.grades.get("target", {})
        n, broken = sum(grades.values()), grades.get("broken", 0)
        if n and grades.get("answered", 0) + broken >= target * n:
            yield self._broken(stage, short, broken, n)
            return
        above = [s for s in record.stages if s.multiplier > stage.multiplier and not s.keeps_floors]
        stop = min(above, key=lambda s: s.multiplier, default=None)
        if stop and not self.config.tune:
            where = f"{short}, and a stronger edit, multiplier {stop.multiplier:g}, loses a floor"
            kind = self._quality if self._loses_quality(stop) else self._retention
            yield kind(stop, where)
            return
        options, do = self._kernel(MORE)
        if stronger := self._strength(1):
            options, do = stronger, "edit more strongly"
        yield Finding(
            "low removal",
            short + (f"; {best}" if (best := self._best_trial()) else "; no floor stopped it"),
            do,
            {"removal": stage.removal.model_dump(), "target": target, "kernel": self._now()},
            self._edit(options),
        )

    def _broken(self, stage: StageRecord, short: str, broken: int, n: int) -> Finding:
        evidence = {"target": stage.grades["target"], "unended": stage.unended}
        if stage.unended > broken / 2:
            tokens = 4 * self.config.thinking_tokens
            return Finding(
                "thoughts without an end",
                f"{short}: {stage.unended} of {n} replies have not finished their thoughts within "
                f"{self.config.thinking_tokens} tokens",
                f"raise the limit to {tokens} tokens",
                evidence,
                self._edit({"thinking_tokens": tokens}),
            )
        return Finding(
            "loops",
            f"{short}: {broken} of {n} replies no longer refuse, but loop",
            "no kernel helps here: small models loop on topics that they hardly know; use a larger "
            "model, or prompts that this one can answer (--target)",
            evidence,
        )

    def _retention(self, stage: StageRecord, where: str) -> Finding:
        lost = {
            topic: [kept, n]
            for topic, (kept, n) in stage.topics.get("keep", {}).items()
            if kept < n
        }
        kinds = ", ".join(f"{plain(t, 60)} {n - k} of {n}" for t, (k, n) in lost.items())
        do = "give keep prompts (--keep) or matched pairs (--pairs) of the kinds that are lost"
        options: dict[str, Any] | None
        if weaker := self._strength(-1):
            options, how = weaker, "edit less strongly"
        elif self.config.method == "ablate" and self.config.protect < 1 and not self.config.tune:
            options, how = {"protect": 1.0}, "protect the whole direction of the keep prompts"
        else:
            options, how = self._search()
        return Finding(
            "retention falls",
            f"{where}: retention {_interval(stage.retention)}, "
            f"floor {self.config.retention_floor:g}" + (f"; lost: {kinds}" if kinds else ""),
            f"{how}; or {do}" if options else do,
            {"retention": stage.retention.model_dump(), "lost": lost},
            self._edit(options),
        )

    def _quality(self, stage: StageRecord, where: str) -> Finding:
        grades = stage.grades.get("baseline", {})
        lost = {grade: n for grade, n in grades.items() if grade != "answered" and n}
        options, do = self._kernel(GENTLER)
        counts = ", ".join(f"{n} {grade}" for grade, n in lost.items())
        return Finding(
            "quality falls",
            f"{where}: quality {_interval(stage.quality)}, floor {self.config.quality_floor:g} "
            f"(its interval from {self.config.quality_bound:g}); KL {stage.kl.value:.3f}"
            + (f"; everyday prompts: {counts}" if lost else ""),
            do,
            {"quality": stage.quality.model_dump(), "kl": stage.kl.value, "lost": lost,
             "kernel": self._now()},
            self._edit(options),
        )  # fmt: skip

    def _topics(self, stage: StageRecord, record: RunRecord) -> Iterator[Finding]:
        """The topic that stays refused though the others go."""
        topics = stage.topics.get("target", {})
        answered, asked = (sum(part[i] for part in topics.values()) for i in (0, 1))
        left = {}
        for topic, (k, n) in topics.items():
            others = asked - n
            if n >= TOPIC and others >= TOPIC and share_of(k, n).high < (answered - k) / others:
                left[topic] = [k, n]
        if not left:
            return
        topic = min(left, key=lambda name: (left[name][0] / left[name][1], -left[name][1]))
        k, n = left[topic]
        rest = (answered - k) / (asked - n)
        without = rest >= self.config.removal_target > stage.removal.value
        options = {"profile": "default"} if self.config.kernel.file else {}
        kernel = f"{self.out}.kernel.json"
        steps = (
            Step("analyze", {"topic": topic, "kernel_out": kernel} | options),
            Step("edit", {"kernel": kernel, "out": str(self.out)}),
        )
        more = f" (likewise: {', '.join(plain(t, 60) for t in left if t != topic)})"
        yield Finding(
            "one topic left",
            f"{plain(topic, 60)}: {k} of {n} answered; the other topics: {rest:.0%}"
            + (more if left.keys() - {topic} else ""),
            "find the topic's own layers, and edit with a kernel of these layers",
            {"topics": left, "others": rest, "reached_without": without},
            steps if topic.isprintable() else (),  # a name that acts in a terminal is not repeated
        )

    def _held_out(self, record: RunRecord) -> Iterator[Finding]:
        if record.saved or record.split != "test":
            return
        yield Finding(
            "not held on the test split",
            "the edit passed on the search split, but did not keep its floors on held-out prompts",
            "no setting follows from held-out prompts; give the search more prompts, so that it "
            "rejects such an edit itself: --keep, --target, --baseline, --pairs"
            + (", or leave out --limit" if self.config.limit else ""),
        )

    def _unreached(self, record: RunRecord) -> Iterator[Finding]:
        lost = record.lost_in_rounding
        if not lost:
            return
        weights = record.kernel.weights
        layers = sorted({int(i) for name in lost for i in re.findall(r"\.(\d{1,4})\.", name)[:1]})
        there = [weights[i] for i in layers if i < len(weights)]
        edge = bool(there) and max(there) < HIGH_THRESHOLD and not self.config.kernel.file
        options = {"threshold": HIGH_THRESHOLD} if edge and not self.config.tune else None
        yield Finding(
            "matrices out of reach",
            f"the edit is too small for the dtype of {len(lost)} matrices (layers "
            f"{', '.join(map(str, layers))}), so these did not change",
            "their weight in the kernel is small: leave these layers alone by a higher threshold"
            if options
            else "a stronger edit, or a checkpoint in a finer dtype, reaches them",
            {"matrices": lost, "layers": layers, "weights": there},
            self._edit(options),
        )

    def _idle(self, record: RunRecord) -> Iterator[Finding]:
        """Prompts of the search split that decide nothing."""
        asked = {name: found.topics for name, found in record.original.get("search", {}).items()}
        counts = _counted(record)
        idle = {name: [n - k, n] for name, (k, n) in counts.items() if n > k}
        if not idle:
            return
        grades = {
            name: {g: c for g, c in found.grades.items() if c and g != EXPECTED[name]}
            for name, found in record.original.get("search", {}).items()
            if name in idle
        }
        silent = {
            name: [topic for topic, (k, _) in topics.items() if k == 0]
            for name, topics in asked.items()
            if any(k == 0 for k, _ in topics.values())
        }
        kinds = {
            name: ", ".join(f"{c} {g}" for g, c in found.items()) for name, found in grades.items()
        }
        counted = ", ".join(
            f"{i} of {n} {name}" + (f" ({kinds[name]})" if name in kinds else "")
            for name, (i, n) in idle.items()
        )
        topics = sorted(f"{plain(t, 60)} ({name})" for name, found in silent.items() for t in found)
        much = any(i / n >= IDLE for i, n in idle.values()) or bool(topics)
        limit = self.config.limit
        options = {"limit": 2 * limit} if limit and much else None
        yield Finding(
            "prompts that decide nothing",
            f"not counted are {counted}: the original did not do what their set is for (refuse "
            "target and keep, answer baseline)"
            + (f"; topics without a counted prompt: {', '.join(topics)}" if topics else ""),
            "ask more prompts" if options else "use others, with --target, --baseline or --keep",
            {"in_no_count": idle, "grades": grades, "topics_without": silent},
            self._edit(options),
        )

    def _not_ended(self) -> Finding:
        wanted = self.config.trials if self.config.tune == "optuna" else 25
        step = Step("tune" if self.tunes else "edit", {"resume": True, "out": str(self.unended)})
        state = f"{len(self.trials)} of {wanted} trials are done, and there is no result yet"
        if not self.config.tune:
            state = "its replies so far are kept, and there is no result yet"
        return Finding(
            "the run has not ended",
            state + (f"; {best}" if (best := self._best_trial()) else ""),
            "go on from where it stopped",
            {"trials": len(self.trials)},
            (step,),
        )

    def _loses_quality(self, stage: StageRecord) -> bool:
        q = stage.quality
        return not (q.value >= self.config.quality_floor and q.low >= self.config.quality_bound)

    def _loses_retention(self, stage: StageRecord) -> bool:
        r = stage.retention
        held = r.value >= self.config.retention_floor and r.low >= self.config.retention_bound
        # With something to spare, or on the shipped prompts alone: then quality is not what failed.
        return not held or not (stage.keeps_floors or self._loses_quality(stage))

    def _kernel(self, ladder: Sequence[tuple[float, float]]) -> tuple[dict[str, Any] | None, str]:
        """The next step of a row of the table, by the kernel that was used; else a search."""
        assert self.record
        now = self.record.kernel
        if not self.config.tune:
            down = ladder is MORE
            for peak, width in ladder:
                nearer = (
                    now.peak is None
                    or now.width is None
                    or (now.peak > peak or now.width < width if down
                        else now.peak < peak or now.width > width)
                )  # fmt: skip
                if nearer:
                    options = {"peak": peak, "width": width}
                    if down:
                        return options, "act earlier in the depth, and on more layers"
                    options["threshold"] = HIGH_THRESHOLD
                    return options, "act later in the depth, and on fewer layers"
        return self._search()

    def _strength(self, sign: int) -> dict[str, Any] | None:
        """Where the user fixed one strength: the next of the stages above or below it."""
        fixed, step = self.config.strength, self.config.multiplier_step
        if fixed is None:
            return None
        after = round(fixed + sign * step, 6)
        if sign > 0:
            after = max(after, self.config.first_multiplier)
        return {"strength": after} if 0 < after <= self.config.max_multiplier else None

    def _search(self) -> tuple[dict[str, Any] | None, str]:
        """To search for an edit, or to search longer."""
        if self.config.tune == "optuna":
            trials = min(2 * self.config.trials, 100_000)
            return {"trials": trials}, f"search longer, {trials} trials"
        if self.config.stream:
            return None, "the table has no further step, and no search runs on a streamed model"
        return {"tune": "optuna"}, "search for a kernel and a strength"

    def _edit(self, options: Mapping[str, Any] | None) -> tuple[Step, ...]:
        if not options:
            return ()
        command: Literal["edit", "tune"] = "tune" if self.tunes else "edit"
        return (Step(command, {**options, "out": str(self.out)}),)

    def _now(self) -> dict[str, Any]:
        assert self.record
        kernel = self.record.kernel
        return {"peak": kernel.peak, "width": kernel.width, "threshold": kernel.threshold}

    def _best_trial(self) -> str:
        if not self.trials:
            return ""
        best = max(self.trials, key=lambda trial: merit(trial.score, self.config))
        kernel = ", ".join(
            f"{name} {best.parameters[name]:.2f}"
            for name in ("peak", "width")
            if name in best.parameters
        )
        return (
            f"the best of {len(self.trials)} trials, number {best.number} ({kernel}): openings "
            f"removed {best.score.removal:.2f}, kept {best.score.retention:.2f}, "
            f"KL {best.score.kl:.3f}"
        )


def _interval(figure: FigureRecord) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f}, n {figure.n})"


def _counted(record: RunRecord) -> Mapping[str, tuple[int, int]]:
    """Per set of the search split: prompts that count, and prompts asked."""
    if search := record.original.get("search"):
        return {
            name: (sum(c for g, c in outcome.grades.items() if g == EXPECTED[name]),
                   sum(outcome.grades.values()))
            for name, outcome in search.items()
        }  # fmt: skip
    # Earlier versions counted refusals alone; of the baseline, those that quality is measured on.
    found = record.refused_before.get("search", {})
    answered = record.stages[0].quality.n
    return {name: (answered if name == "baseline" else k, n) for name, (k, n) in found.items()}

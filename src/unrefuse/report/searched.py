"""What the search split has shown, as run.json keeps it: the one ground for what to run next."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from unrefuse.metrics.measurement import Before, Exchange, removed, retained
from unrefuse.prompts.sets import SETS
from unrefuse.prompts.thinking import is_thinking
from unrefuse.search.stage import Stage


def stage_record(stage: Stage) -> dict[str, Any]:
    """One stage: its figures and, of the prompts that count, the replies by grade and by topic.

    `topics` holds, per topic, `[answered, prompts]` of target and `[still refused, prompts]` of
    keep; `unended` counts target replies that are all thoughts.
    """
    counted = [e for e in stage.measurement.exchanges if e.as_expected and e.after]
    target = [e for e in counted if e.prompt.set == "target"]
    keep = [e for e in counted if e.prompt.set == "keep"]
    return {
        "name": stage.name,
        "multiplier": stage.multiplier,
        **stage.measurement.figures(),
        "keeps_floors": stage.keeps_floors,
        "grades": {
            name: Counter(e.after.grade for e in counted if e.after and e.prompt.set == name)
            for name in SETS
        },
        "topics": {
            "target": _by_topic(target, [removed(e) for e in target]),
            "keep": _by_topic(keep, [retained(e) for e in keep]),
        },
        "unended": sum(e.after is not None and is_thinking(e.after.text) for e in target),
    }


def original_record(before: Before) -> dict[str, Any]:
    """What the original did on one split, per set: its replies by grade, and per topic `[did what
    the set is for, asked]`. Prompts with which it did not are in no count."""
    sets = {name: [e for e in before.exchanges if e.prompt.set == name] for name in SETS}
    return {
        name: {
            "grades": Counter(e.before.grade for e in exchanges),
            "topics": _by_topic(exchanges, [e.as_expected for e in exchanges]),
        }
        for name, exchanges in sets.items()
    }


def _by_topic(exchanges: Sequence[Exchange], hits: Sequence[bool]) -> dict[str, list[int]]:
    topics = [e.prompt.topic for e in exchanges]
    return {
        topic: [
            sum(hit for t, hit in zip(topics, hits, strict=True) if t == topic),
            topics.count(topic),
        ]
        for topic in sorted(set(topics) - {""})
    }

"""What a run will do, told before it does it, and about how long that takes."""

from collections.abc import Sequence

from unrefuse.config import RunConfig
from unrefuse.engine.generate import paces
from unrefuse.metrics.measurement import CONTEXT_PROMPTS, asked_sets
from unrefuse.models.load import Model
from unrefuse.prompts.sets import SETS, Prompt, select
from unrefuse.report.terminal import duration
from unrefuse.search.stages import multipliers

STAGES = 8  # that an edit goes through, mostly: those at full length too
GRID = 25
SHARE = 0.9  # of whole replies in full batches: refusals end early, and last batches are small
READ = 3  # a scored trial reads its prompts with a few beginnings of refusals
CONTEXTS = 3 * len(SETS) * CONTEXT_PROMPTS  # prompts of the test that are asked in other contexts


def outlook(
    model: Model, prompts: Sequence[Prompt], splits: Sequence[str], config: RunConfig
) -> str:
    """The steps of an edit, a tuning, or, without a test split, of an analysis, and the time.

    A streamed model takes the time that its disk takes, which is not told.
    """
    asked = {
        split: [p for name in asked_sets(split, config) for p in select(prompts, name, split)]
        for split in splits
    }
    steps = [f"ask the original {sum(map(len, asked.values()))} prompts"]
    read = sum(p.split == "train" for p in prompts)  # for the edit, beside what is asked
    written = 0

    def ask(n: int, reply_tokens: int) -> None:
        nonlocal read, written
        read += n
        written += n * model.longest(reply_tokens)

    for split in splits:
        ask(len(asked[split]), config.reply_tokens if split == "test" else config.search_tokens)
    if "test" not in splits:
        steps.append(f"measure {model.layers} layers, edit nothing")
        read += model.layers * len(asked["search"])
    else:
        tried = multipliers(config)
        if config.tune:
            trials = GRID if config.tune == "grid" else config.trials
            steps.append(f"score {trials} trials")
            read += READ * trials * len(asked["search"])
        if config.tune != "optuna":
            several = f"try up to {len(tried)} strengths from {tried[0]:g}"
            steps.append(several if len(tried) > 1 else f"try the strength {tried[0]:g}")
        steps.append(f"test the best on {len(asked['test'])} prompts")
        steps.append(f"write it to {config.out} if it keeps the floors")
        ask(min(STAGES, len(tried)) * len(asked["search"]), config.search_tokens)
        ask(len(asked["test"]) + 2 * CONTEXTS, config.reply_tokens)
    return _with_time(f"plan: {', '.join(steps)}", model, read, written, [p.text for p in prompts])


def questions(model: Model, texts: Sequence[str], reply_tokens: int) -> str:
    """The same where one model is asked, and no more."""
    plan = f"plan: ask {model.name} {len(texts)} prompts, replies of {reply_tokens} tokens"
    return _with_time(plan, model, len(texts), len(texts) * model.longest(reply_tokens), texts)


def _with_time(plan: str, model: Model, read: int, written: int, texts: Sequence[str]) -> str:
    """With the time to read so many prompts and to write up to so many tokens."""
    if model.stream is not None:
        return plan
    to_read, to_write = paces(model, texts)
    return f"{plan}\ntime: about {duration(read * to_read + SHARE * written * to_write)}"

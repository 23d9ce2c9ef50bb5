"""What a run will do, told before it does it, and about how long that takes."""

import time
from collections.abc import Mapping, Sequence

from unrefuse.config import RunConfig
from unrefuse.engine.generate import last_logits
from unrefuse.metrics.measurement import asked_sets
from unrefuse.models.load import Model
from unrefuse.prompts.sets import Prompt, select
from unrefuse.report.terminal import duration
from unrefuse.search.stages import multipliers

SAMPLE = 16  # prompts that are timed
STAGES = 4  # that an edit goes through, mostly
GRID = 25
SHARE = 0.7  # of the tokens that a reply may have: refusals end early
READ = 3  # a scored trial reads its prompts with a few beginnings of refusals


def outlook(
    model: Model,
    lengths: Mapping[Prompt, int],
    splits: Sequence[str],
    config: RunConfig,
) -> str:
    """The steps of an edit, a tuning, or, without a test split, of an analysis, and the time.

    `lengths` are the tokens of every prompt. A streamed model takes the time that its disk takes,
    which is not told.
    """

    def tokens(split: str, reply: int) -> float:
        """That the model reads and writes."""
        return sum(lengths[p] + SHARE * model.longest(reply) for p in asked[split])

    prompts = list(lengths)
    asked = {
        split: [p for name in asked_sets(split, config) for p in select(prompts, name, split)]
        for split in splits
    }
    steps = [f"ask the original {sum(map(len, asked.values()))} prompts"]
    work = sum(
        tokens(split, config.reply_tokens if split == "test" else config.search_tokens)
        for split in splits
    )
    if "test" not in splits:
        steps.append(f"measure {model.layers} layers, edit nothing")
    else:
        tried = multipliers(config)
        if config.tune:
            trials = GRID if config.tune == "grid" else config.trials
            steps.append(f"score {trials} trials")
            work += READ * trials * tokens("search", 0)
        if config.tune != "optuna":
            several = f"try up to {len(tried)} strengths from {tried[0]:g}"
            steps.append(several if len(tried) > 1 else f"try the strength {tried[0]:g}")
        steps.append(f"test the best on {len(asked['test'])} prompts")
        steps.append(f"write it to {config.out} if it keeps the floors")
        work += min(STAGES, len(tried)) * tokens("search", config.search_tokens)
        work += tokens("test", config.reply_tokens)
    return _with_time(f"plan: {', '.join(steps)}", model, work, [p.text for p in prompts])


def questions(model: Model, texts: Sequence[str], reply_tokens: int) -> str:
    """The same where one model is asked, and no more."""
    plan = f"plan: ask {model.name} {len(texts)} prompts, replies of {reply_tokens} tokens"
    rows = model.encode(texts)
    work = sum(len(row) + SHARE * model.longest(reply_tokens) for row in rows)
    return _with_time(plan, model, work, texts)


def _with_time(plan: str, model: Model, tokens: float, texts: Sequence[str]) -> str:
    """With the time that so many tokens take, by one forward pass over a few prompts, which has
    about as many tokens as a step of a batch of replies."""
    if model.stream is not None:
        return plan
    tried = model.encode(texts[:SAMPLE])
    start = time.perf_counter()
    last_logits(model, texts[:SAMPLE])
    pace = len(tried) * max(map(len, tried)) / (time.perf_counter() - start)
    return f"{plan}\ntime: about {duration(tokens / pace)}"

"""Matched pairs: a harmless prompt that only sounds alarming, and a harmful one in the same words
as far as they go. Shipped ones, and those of a user's file beside them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.errors import UsageError
from unrefuse.prompts.sets import SPLITS, Prompt, file_rows, find_problems, limited, split

PAIR_SETS = ("harmless", "harmful")


def load_pairs(config: RunConfig) -> list[Prompt]:
    """The prompts of all pairs, two a pair: the harmless one, then the harmful one.

    The shipped pairs in `config.languages`, and beside them those of the file `config.pairs`: a
    row with the columns harmless and harmful, and where it has them topic, lang and split. Rows
    without a split go to train and search. Raises UsageError that names the file and the line.
    """
    data = (files("unrefuse.prompts") / "data" / "pairs.jsonl").read_text(encoding="utf-8")
    rows: Iterator[tuple[int, Any]] = (
        (number, json.loads(line)) for number, line in enumerate(data.splitlines(), start=1)
    )
    pairs = [_pair(row, "shipped pairs", line) for line, row in rows]
    pairs = [p for p in pairs if not config.languages or p[0].lang in config.languages]
    if config.pairs:
        own = [_pair(row, str(config.pairs), line) for line, row in file_rows(Path(config.pairs))]
        if not own:
            raise UsageError(f"{config.pairs}: no pairs in it")
        divided = split([harmless for harmless, _ in own], config.seed, (0.75, 0.25))
        splits = {p.pair: p.split for p in divided}
        pairs += [
            (replace(a, split=splits[a.pair]), replace(b, split=splits[b.pair])) for a, b in own
        ]
    prompts = [p for pair in pairs for p in pair]
    if problems := find_problems(prompts):
        raise UsageError(problems[0])
    if config.limit:
        taken = {p.pair for p in limited([harmless for harmless, _ in pairs], config.limit)}
        prompts = [p for p in prompts if p.pair in taken]
    return prompts


def _pair(row: Any, source: str, line: int) -> tuple[Prompt, Prompt]:
    there = row if isinstance(row, dict) else {}
    texts = [str(there.get(name) or "").strip() for name in PAIR_SETS]
    if not all(texts):
        raise UsageError(f"{source}:{line}: a pair needs the columns harmless and harmful")
    kept = {key: str(row.get(key) or "") for key in ("topic", "lang", "split")}
    if kept["split"] and kept["split"] not in SPLITS:
        raise UsageError(f"{source}:{line}: split {kept['split']!r} is none of {', '.join(SPLITS)}")
    pair = str(row.get("id") or f"{source}:{line}")
    harmless, harmful = (
        Prompt(text, name, **kept, source=source, line=line, pair=pair)
        for name, text in zip(PAIR_SETS, texts, strict=True)
    )
    return harmless, harmful

"""Matched pairs: a harmless prompt that only sounds alarming, and a harmful one in the same words
as far as they go. Shipped ones, and those of a user's file beside them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from unrefuse.config import Pairs, RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.language import language, language_code
from unrefuse.prompts.rows import cell, file_rows
from unrefuse.prompts.sets import SPLITS, Prompt, limited, same_text, split

PAIR_SETS = ("harmless", "harmful")


def load_pairs(config: RunConfig, prompts: Sequence[Prompt] = ()) -> list[Prompt]:
    """The prompts of all pairs, two a pair: the harmless one, then the harmful one.

    The shipped pairs in `config.languages`, at most `config.limit` a split, and beside them all of
    `config.pairs`: in a file, rows with the columns harmless and harmful, and where they have them
    topic, lang and split. Rows without a split go to train and search. A shipped pair that is
    learned from gives way to one of `prompts` in the same words. Raises UnrefuseError that names
    the file and the line.
    """
    data = (files("unrefuse.prompts") / "data" / "pairs.jsonl").read_text(encoding="utf-8")
    shipped = (json.loads(line) for line in data.splitlines())
    pairs = [_pair(row, "shipped pairs", n, row["id"]) for n, row in enumerate(shipped, start=1)]
    wanted = {language_code(name) for name in config.languages}
    pairs = [p for p in pairs if not wanted or p[0].lang in wanted]
    given = {same_text(p.text) for p in prompts}
    pairs = [
        pair
        for pair in pairs
        if pair[0].split == "test" or not any(same_text(p.text) in given for p in pair)
    ]
    if config.limit:
        taken = {p.pair for p in limited([harmless for harmless, _ in pairs], config.limit)}
        pairs = [p for p in pairs if p[0].pair in taken]
    if config.pairs is not None:
        source, rows = _given_rows(config.pairs)
        added = [_pair(row, source, n, f"{source}:{n}") for n, row in rows]
        if not added:
            raise UnrefuseError(f"{source}: no pairs in it")
        divided = split([harmless for harmless, _ in added], config.seed, (0.75, 0.25))
        splits = {p.pair: p.split for p in divided}
        pairs += [tuple(replace(p, split=splits[p.pair]) for p in pair) for pair in added]
    return [p for pair in pairs for p in pair]


def _given_rows(pairs: Path | Pairs) -> tuple[str, Iterable[tuple[int, Any]]]:
    """Where a user's pairs come from, and their rows with their numbers."""
    if isinstance(pairs, Path):
        return str(pairs), file_rows(pairs)
    named = (dict(zip(PAIR_SETS, pair, strict=True)) for pair in pairs)
    return "pairs", enumerate(named, start=1)


def _pair(row: Any, source: str, line: int, pair: str) -> tuple[Prompt, ...]:
    place = f"{source}:{line}"
    there = row if isinstance(row, dict) else {}
    if not all(isinstance(there.get(name), str) for name in PAIR_SETS):
        raise UnrefuseError(f"{place}: a pair needs text in the columns harmless and harmful")
    texts = [cell(there, name, place) for name in PAIR_SETS]
    if not all(texts):
        raise UnrefuseError(f"{place}: a pair needs text in the columns harmless and harmful")
    kept = {key: cell(there, key, place) for key in ("topic", "lang", "split")}
    kept["lang"] = language_code(kept["lang"]) or language(texts[0])
    if kept["split"] and kept["split"] not in SPLITS:
        raise UnrefuseError(f"{place}: split {kept['split']!r} is not one of {', '.join(SPLITS)}")
    return tuple(
        Prompt(text, name, **kept, source=source, line=line, pair=pair)
        for name, text in zip(PAIR_SETS, texts, strict=True)
    )

"""Prompt sets: read, check, split. Shipped ones, files of one's own, and data sets by name."""

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.imports import import_rows, is_import
from unrefuse.prompts.language import language, language_code
from unrefuse.prompts.rows import FILE_TYPES, cell, columns, dataset_rows, file_rows, json_lines
from unrefuse.prompts.similar import alike

SETS = ("target", "baseline", "keep")
SHIPPED = "shipped"  # the source of the shipped prompts
SPLITS = ("train", "search", "test")
SHARES = (0.4, 0.3, 0.3)  # of a file without splits of its own
MOST_ALIKE = 0.05  # of a set, in one group: of prompts from one template some go to each split


@dataclass(frozen=True)
class Prompt:
    """One prompt. `set` is target, baseline or keep; `split` is train, search or test ("": not
    split yet); `line` is its line in `source`, counted from 1. The prompts of a matched pair have
    the set harmless or harmful, and the id of their `pair`."""

    text: str
    set: str
    topic: str = ""
    lang: str = ""
    split: str = ""
    source: str = ""
    line: int = 0
    pair: str = ""

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}"


def load_prompts(config: RunConfig) -> list[Prompt]:
    """The prompts of all three sets, each with its split, checked, filtered and limited.

    Keep prompts of the user's own, those for the test too, stand beside the shipped ones. With a
    test file of a set's own, its main file is split into train and search only. Prompts of
    `config.imports` take the place of shipped target prompts, and stand beside the keep prompts.
    Prompts whose language is not known are taken whatever `config.languages` are.
    Raises UnrefuseError that names the file and the line.
    """

    def read(source: str, name: str) -> list[Prompt]:
        given = read_set(source, name, config.column, config.data_split)
        return beside_shipped(given) if name == "keep" else given

    main = _with_imports({name: read(getattr(config, name), name) for name in SETS}, config)
    tests = {name: read(file, name) for name in SETS if (file := getattr(config, f"test_{name}"))}
    shipped = {name: read_set(SHIPPED, name) if name == "keep" else [] for name in SETS}
    every = {name: [*shipped[name], *of_set] for name, of_set in main.items()}
    check_prompts([p for part in (every, tests) for of_set in part.values() for p in of_set])
    prompts = split([p for name in SETS if name not in tests for p in every[name]], config.seed)
    for name, of_set in tests.items():
        rest = [replace(p, split="") for p in main[name]]
        prompts += shipped[name] + split(rest, config.seed, SHARES[:2])
        prompts += [replace(p, split="test") for p in of_set]
    if config.languages:
        prompts = _in_languages(prompts, config.languages)
    if config.limit:
        prompts = limited(prompts, config.limit)
    return prompts


def read_set(
    source: str, name: str, column: str = "prompt", data_split: str = "train"
) -> list[Prompt]:
    """The prompts of one set from `source`: 'shipped', 'planted', a file, FORMAT:FILE of a public
    data set, or a data set's name.

    Rows of another set (a `set` field) are left out. Raises UnrefuseError.
    """
    if is_import(source):
        prompts = read_imports([source])
    elif source in (SHIPPED, "planted"):
        file = "planted" if source == "planted" else name
        if source == "planted" and name != "target":
            raise UnrefuseError("'planted' is a set of target prompts only")
        data = (files("unrefuse.prompts") / "data" / f"{file}.jsonl").read_text(encoding="utf-8")
        prompts = _prompts(json_lines(data, source), source, name, "prompt")
    elif Path(source).suffix.lower() in FILE_TYPES or _is_there(Path(source)):
        prompts = _prompts(file_rows(Path(source)), source, name, column)
    else:
        prompts = _prompts(dataset_rows(source, data_split), source, name, column)
    prompts = [p for p in prompts if p.set == name]
    if not prompts:
        raise UnrefuseError(f"{source}: no {name} prompts in it")
    return prompts


def beside_shipped(keep: list[Prompt]) -> list[Prompt]:
    """Of these keep prompts those that are not among the shipped ones, which come in any case: the
    floor of retention is held on them, whatever a user adds."""
    return [p for p in keep if same_text(p.text) not in _shipped_texts()]


@cache
def _shipped_texts() -> frozenset[str]:
    return frozenset(same_text(p.text) for p in read_set(SHIPPED, "keep"))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file, such as a whole prompt
        return False


def read_imports(specs: Sequence[str]) -> list[Prompt]:
    """The target and keep prompts of public data sets, each FORMAT:FILE; what stands twice once.

    Raises UnrefuseError that names the file and the line.
    """
    prompts: dict[tuple[str, str], Prompt] = {}
    for spec in specs:
        file, rows = import_rows(spec)
        found = _prompts(rows, str(file), "", "prompt")
        if not found:
            raise UnrefuseError(f"{file}: no prompts in it")
        for prompt in found:
            if not prompt.text:
                raise UnrefuseError(f"{prompt.place}: the prompt is empty")
            prompts.setdefault((prompt.set, same_text(prompt.text)), prompt)
    return list(prompts.values())


def _with_imports(main: dict[str, list[Prompt]], config: RunConfig) -> dict[str, list[Prompt]]:
    """The prompts by set with those that are imported. What is there already is not added."""
    imported = read_imports(config.imports)
    if any(p.set == "target" for p in imported):
        check_place(config, "target")
        main = main | {"target": []}
    known = {same_text(p.text) for of_set in main.values() for p in of_set}
    known |= _shipped_texts()
    new = [p for p in imported if same_text(p.text) not in known]
    return {name: [*of_set, *(p for p in new if p.set == name)] for name, of_set in main.items()}


def check_place(config: RunConfig, name: str) -> None:
    """Raises UnrefuseError where the prompts of a set come from an import and from a file too."""
    if getattr(config, name) not in ("shipped", "planted"):
        raise UnrefuseError(f"{name} prompts come from --{name} and an import: leave out one")


def split(prompts: Sequence[Prompt], seed: int, shares: tuple[float, ...] = SHARES) -> list[Prompt]:
    """Gives each prompt without a split one, seeded, in the given shares of SPLITS, by set.

    Prompts in nearly the same words stay in one split, and go where such a prompt with a split
    stands. Neither the order of the prompts nor what else is there moves more than a few.
    """
    done = [p for p in prompts if p.split]
    if len(done) == len(prompts):
        return done
    totals = Counter(p.set for p in prompts if not p.split)
    ends = [0.0, *(sum(shares[: i + 1]) / sum(shares) for i in range(len(shares)))]
    room = {
        (name, part): round(n * end) - round(n * start)
        for name, n in totals.items()
        for part, (start, end) in zip(SPLITS, pairwise(ends), strict=False)
    }
    for group in sorted(_groups(prompts, totals), key=lambda group: _lot(group, seed)):
        free = sorted((p for p in group if not p.split), key=lambda p: (p.text, p.set))
        counts = Counter(p.set for p in free)
        # The first split with room for the whole group, else for a prompt of it, else the first.
        parts = [p.split for p in group if p.split] or [
            part
            for least in (counts, {free[0].set: 1}, {})
            for part in SPLITS[: len(shares)]
            if all(room[name, part] >= n for name, n in least.items())
        ]
        done += [replace(p, split=parts[0]) for p in free]
        for name, n in counts.items():
            room[name, parts[0]] = room.get((name, parts[0]), 0) - n
    return done


def _groups(prompts: Sequence[Prompt], totals: Counter[str]) -> list[list[Prompt]]:
    """The prompts without a split, in groups of nearly the same words, each with those that have
    one. The most alike are joined first, as long as a group is no large part of a set."""
    groups = {i: [i] for i in range(len(prompts))}
    leader = list(groups)
    for i, j in alike([p.text for p in prompts]):
        first, second = leader[i], leader[j]
        if first == second or (prompts[i].split and prompts[j].split):
            continue
        both = groups[first] + groups[second]
        counts = Counter(prompts[k].set for k in both if not prompts[k].split)
        given = {prompts[k].split for k in both if prompts[k].split}
        if len(given) > 1 or any(
            n > max(2, MOST_ALIKE * totals[name]) for name, n in counts.items()
        ):
            continue
        groups[first] = both
        for k in groups.pop(second):
            leader[k] = first
    found = ([prompts[k] for k in group] for group in groups.values())
    return [group for group in found if not all(p.split for p in group)]


def _lot(group: Sequence[Prompt], seed: int) -> tuple[bool, str]:
    """What orders the groups: those that have a split first, then by a hash of seed and text."""
    text = min(same_text(p.text) for p in group if not p.split)
    drawn = hashlib.sha256(json.dumps([seed, text]).encode()).hexdigest()
    return not any(p.split for p in group), drawn


def _in_languages(prompts: list[Prompt], languages: Iterable[str]) -> list[Prompt]:
    """Those in the languages, and those of which that is not known. Raises UnrefuseError for a set
    that has none."""
    wanted = {language_code(name) for name in languages}
    taken = [p for p in prompts if not p.lang or p.lang in wanted]
    for name in SETS:
        of_set = [p for p in prompts if p.set == name]
        if of_set and not any(p.set == name for p in taken):
            there = ", ".join(sorted({p.lang for p in of_set}))
            raise UnrefuseError(
                f"{of_set[0].source}: no {name} prompts in {', '.join(sorted(wanted))} (found: "
                f"{there})"
            )
    return taken


def find_problems(prompts: list[Prompt]) -> list[str]:
    """One line per empty prompt, duplicate, or prompt in two sets, with the place of each."""
    problems: list[str] = []
    seen: dict[str, Prompt] = {}
    for prompt in prompts:
        key = same_text(prompt.text)
        first = seen.setdefault(key, prompt)
        if not key:
            problems.append(f"{prompt.place}: the prompt is empty")
        elif first is not prompt and first.set != prompt.set:
            problems.append(
                f"{prompt.place}: this {prompt.set} prompt is a {first.set} prompt too "
                f"({first.place})"
            )
        elif first is not prompt:
            problems.append(f"{prompt.place}: the same prompt as {first.place}")
    return problems


def same_text(text: str) -> str:
    """One form for texts that differ in case, white space or width alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def check_prompts(prompts: list[Prompt]) -> None:
    """Raises UnrefuseError, for the first of `find_problems`."""
    if problems := find_problems(prompts):
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise UnrefuseError(problems[0] + more)


def select(prompts: Sequence[Prompt], set: str, split: str) -> list[Prompt]:
    """The prompts of one set and split, in order."""
    return [p for p in prompts if p.set == set and p.split == split]


def prompts_hash(prompts: list[Prompt]) -> str:
    """SHA-256 over set, split and text of every prompt, in order."""
    digest = hashlib.sha256()
    for p in prompts:
        digest.update(json.dumps([p.set, p.split, p.text]).encode())
    return digest.hexdigest()


def _prompts(rows: Iterable[tuple[int, Any]], source: str, name: str, column: str) -> list[Prompt]:
    return [_prompt(row, source, line, name, column) for line, row in rows]


def _prompt(row: Any, source: str, line: int, name: str, column: str) -> Prompt:
    place = f"{source}:{line}"
    if isinstance(row, str):
        row = {column: row}
    if not isinstance(row, dict) or column not in row:
        raise UnrefuseError(
            f"{place}: no column {column!r} (found: {columns(row)}); name a column with --column"
        )
    if not isinstance(row[column], str):
        raise UnrefuseError(
            f"{place}: column {column!r} holds {row[column]!r:.40}, which is not text"
        )
    text = cell(row, column, place)
    kind, part = cell(row, "set", place) or name, cell(row, "split", place)
    if kind not in SETS:
        raise UnrefuseError(f"{place}: set {kind!r} is not one of {', '.join(SETS)}")
    if part and part not in SPLITS:
        raise UnrefuseError(f"{place}: split {part!r} is not one of {', '.join(SPLITS)}")
    lang = language_code(cell(row, "lang", place)) or language(text)
    return Prompt(text, kind, cell(row, "topic", place), lang, part, source, line)


def limited(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` per set and split, spread evenly so that topics, and the files that a set
    comes from, stay mixed. Shipped keep prompts, which come in any case, are counted by themselves.

    Of keep twice as many: a floor of 0.95 can't be told from one prompt more or less on few. Of
    the train split four times as many: a probe learns from it, and one pass is all it costs.
    """
    groups: dict[tuple[str, str, bool], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.set, prompt.split, prompt.source == SHIPPED].append(prompt)
    limited = []
    for (name, split, _), group in groups.items():
        most = limit * (2 if name == "keep" else 1) * (4 if split == "train" else 1)
        size = min(most, len(group))
        limited += [group[i * len(group) // size] for i in range(size)]
    return limited

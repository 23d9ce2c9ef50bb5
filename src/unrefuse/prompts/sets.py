"""Prompt sets: read, check, split. Shipped ones, files of one's own, and data sets by name."""

import csv
import hashlib
import json
import random
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.errors import UsageError

SETS = ("target", "baseline", "keep")
SHIPPED = "shipped"  # the source of the shipped prompts
SPLITS = ("train", "search", "test")
SHARES = (0.4, 0.3, 0.3)  # of a file without splits of its own
FILE_TYPES = (".txt", ".jsonl", ".csv", ".parquet")


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

    Keep prompts of the user's own, those for the test too, stand beside the shipped ones.
    With a test file of a set's own, its main file is split into train and search only. A prompt
    that does not say its language passes for one in `config.languages`.
    Raises UsageError that names the file and the line.
    """

    def read(source: str, name: str) -> list[Prompt]:
        own = read_set(source, name, config.column, config.data_split)
        return beside_shipped(own) if name == "keep" else own

    main = {name: read(getattr(config, name), name) for name in SETS}
    tests = {name: read(file, name) for name in SETS if (file := getattr(config, f"test_{name}"))}
    shipped = read_set(SHIPPED, "keep")
    check_prompts([*main["target"], *main["baseline"], *shipped, *main["keep"],
                   *(p for own in tests.values() for p in own)])  # fmt: skip
    prompts: list[Prompt] = []
    for name, own in main.items():
        prompts += shipped if name == "keep" else []
        if name in tests:
            prompts += split([replace(p, split="") for p in own], config.seed, SHARES[:2])
            prompts += [replace(p, split="test") for p in tests[name]]
        else:
            prompts += split(own, config.seed)
    if config.languages:
        prompts = [p for p in prompts if p.lang in ("", *config.languages)]
    if config.limit:
        prompts = limited(prompts, config.limit)
    return prompts


def read_set(
    source: str, name: str, column: str = "prompt", data_split: str = "train"
) -> list[Prompt]:
    """The prompts of one set from `source`: 'shipped', 'planted', a file, or a data set's name.

    Rows of another set (a `set` field) are left out. Raises UsageError.
    """
    if source in (SHIPPED, "planted"):
        file = "planted" if source == "planted" else name
        if source == "planted" and name != "target":
            raise UsageError("'planted' is a target set only")
        data = (files("unrefuse.prompts") / "data" / f"{file}.jsonl").read_text(encoding="utf-8")
        rows: Iterator[tuple[int, Any]] = _json_lines(data, source)
        column = "prompt"
    elif Path(source).suffix.lower() in FILE_TYPES or Path(source).exists():
        rows = file_rows(Path(source))
    else:
        rows = _dataset_rows(source, data_split)
    prompts = [_prompt(row, source, line, name, column) for line, row in rows]
    prompts = [p for p in prompts if p.set == name]
    if not prompts:
        raise UsageError(f"{source}: no {name} prompts in it")
    return prompts


def beside_shipped(keep: list[Prompt]) -> list[Prompt]:
    """Of these keep prompts those that are not among the shipped ones, which come in any case: the
    floor of retention is held on them, whatever a user adds."""
    known = {same_text(p.text) for p in read_set(SHIPPED, "keep")}
    return [p for p in keep if same_text(p.text) not in known]


def split(prompts: list[Prompt], seed: int, shares: tuple[float, ...] = SHARES) -> list[Prompt]:
    """Gives each prompt without a split one, seeded, in the given shares of SPLITS."""
    done = [p for p in prompts if p.split]
    rest = [p for p in prompts if not p.split]
    random.Random(seed).shuffle(rest)
    total, start = sum(shares), 0
    for name, upto in zip(SPLITS, (sum(shares[: i + 1]) for i in range(len(shares))), strict=False):
        end = round(len(rest) * upto / total)
        done += [replace(p, split=name) for p in rest[start:end]]
        start = end
    return done


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
    """Raises UsageError, for the first of `find_problems`."""
    if problems := find_problems(prompts):
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise UsageError(problems[0] + more)


def select(prompts: Sequence[Prompt], set: str, split: str) -> list[Prompt]:
    """The prompts of one set and split, in order."""
    return [p for p in prompts if p.set == set and p.split == split]


def prompts_hash(prompts: list[Prompt]) -> str:
    """SHA-256 over set, split and text of every prompt, in order."""
    digest = hashlib.sha256()
    for p in prompts:
        digest.update(json.dumps([p.set, p.split, p.text]).encode())
    return digest.hexdigest()


def _prompt(row: Any, source: str, line: int, name: str, column: str) -> Prompt:
    if isinstance(row, str):
        return Prompt(row.strip(), name, "", "", "", source, line)
    if not isinstance(row, dict) or column not in row:
        has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UsageError(f"{source}:{line}: no column {column!r} (there: {has}); name it: --column")
    text, kind, part = row[column], row.get("set") or name, row.get("split") or ""
    if not isinstance(text, str):
        raise UsageError(f"{source}:{line}: column {column!r} holds no text but {text!r:.40}")
    if kind not in SETS:
        raise UsageError(f"{source}:{line}: set {kind!r} is none of {', '.join(SETS)}")
    if part and part not in SPLITS:
        raise UsageError(f"{source}:{line}: split {part!r} is none of {', '.join(SPLITS)}")
    topic, lang = str(row.get("topic") or ""), str(row.get("lang") or "")
    return Prompt(text.strip(), kind, topic, lang, part, source, line)


def file_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file of one of the FILE_TYPES, each with its line. Raises UsageError."""
    kind = file.suffix.lower()
    if kind == ".parquet":
        yield from _parquet_rows(file)
        return
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{file}:{line}: not UTF-8 (byte {data[error.start]:#04x}): convert it"
        ) from None
    if kind == ".jsonl":
        yield from _json_lines(text, str(file))
    elif kind == ".csv":
        reader = csv.DictReader(StringIO(text, newline=""), strict=True)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UsageError(f"{file}:{reader.line_num}: {error}") from None
    elif kind == ".txt":
        yield from enumerate(text.splitlines(), start=1)
    else:
        raise UsageError(f"{file}: the name must end in {', '.join(FILE_TYPES)}")


def _json_lines(text: str, source: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            raise UsageError(f"{source}:{number}: the line is empty")
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise UsageError(f"{source}:{number}: not JSON: {error}") from None


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        yield from enumerate(read_table(file).to_pylist(), start=1)
    except (OSError, ArrowException) as error:
        raise UsageError(f"cannot read {file}: {error}") from None


def _dataset_rows(name: str, data_split: str) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        yield from enumerate(datasets.load_dataset(name, split=data_split), start=1)
    except Exception as error:  # the library raises many kinds, from the network down
        raise UsageError(
            f"no such file, and `datasets` cannot load {name!r} (split {data_split!r}): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None


def limited(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` per set, split and source, spread evenly over the file so that topics stay
    mixed.

    Of keep twice as many: a floor of 0.95 can't be told from one prompt more or less on few. Of
    the train split four times as many: a probe learns from it, and one pass is all it costs.
    """
    groups: dict[tuple[str, str, str], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.set, prompt.split, prompt.source].append(prompt)
    limited = []
    for (name, split, _), group in groups.items():
        most = limit * (2 if name == "keep" else 1) * (4 if split == "train" else 1)
        size = min(most, len(group))
        limited += [group[i * len(group) // size] for i in range(size)]
    return limited

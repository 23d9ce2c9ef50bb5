"""The folder of a run, which outlives a killed one: settings, replies, trials, state."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from unrefuse.config import RunConfig
from unrefuse.engine.generate import Reply, graded
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.jsontext import json_text
from unrefuse.prompts.sets import Prompt
from unrefuse.textfile import parse_json, read_text

SETTINGS, TRIALS, LOCK = "settings.json", "trials.jsonl", ".lock"
ENDED = {"run.json", "transcripts.jsonl", "report.html"}  # of a run that saved nothing
# Where and how fast a run computes, and what only the last step reads, decide no trial.
FREE = ("out", "resume", "backend", "device", "batch_size", "test_target", "test_baseline",
        "test_keep", "judge", "judge_label", "judge_input")  # fmt: skip


def check_run(folder: Path, resume: bool) -> None:
    """Raises UnrefuseError where a run would be overwritten, or there is none to go on with."""
    if (folder / SETTINGS).exists():
        if not resume:
            _locked(folder).release()
            raise UnrefuseError(
                f"{folder} already holds a run: go on with it by --resume, or remove it"
            )
        return
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else {str(folder)}
    if folder.exists() and there - ENDED - {LOCK}:
        raise UnrefuseError(f"{folder} exists and is not a run of unrefuse: name another --out")
    if resume:
        raise UnrefuseError(f"there is no run in {folder} to resume: leave out --resume")


def open_run(folder: Path, config: RunConfig) -> BaseFileLock | None:
    """Makes the folder of a run, or goes on with the one that is there. The run is this process's
    own as long as the lock lives; the system takes it from a killed one. A study of Optuna has no
    lock: several processes may share it.

    `config` is resolved. Raises UnrefuseError where that run had other settings, and where another
    process is at it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = None if config.tune == "optuna" else _locked(folder)
    except OSError as error:
        raise UnrefuseError(f"cannot write {folder}: {error.strerror}") from None
    _check_settings(folder, config)
    return lock


def _locked(folder: Path) -> BaseFileLock:
    """The lock of the run in `folder`. Raises UnrefuseError where another process holds it."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UnrefuseError(
            f"another process works on the run in {folder}: wait for it, or name another --out"
        ) from None
    return lock


def _check_settings(folder: Path, config: RunConfig) -> None:
    settings = _settings(config)
    file = folder / SETTINGS
    if not file.exists():
        try:
            write_whole(file, json_text(settings, indent=2) + "\n")
        except OSError as error:
            raise UnrefuseError(f"cannot write {folder}: {error.strerror}") from None
        return
    try:
        # A run from before there was a setting had what is its default now.
        defaults = _settings(RunConfig(model=config.model))
        earlier = defaults | parse_json(read_text(file))
    except (ValueError, TypeError) as error:
        raise UnrefuseError(f"cannot read {file}: {error}") from None
    settings, earlier = _flat(settings), _flat(earlier)
    for key in sorted(settings.keys() | earlier.keys()):
        if settings.get(key) != earlier.get(key):
            raise UnrefuseError(
                f"{folder} holds a run with other settings ({key} was {json_text(earlier.get(key))}"
                f" and is {json_text(settings.get(key))} now): use the same settings, or another "
                "--out"
            )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """With the settings of a setting under their own names: kernel.peak."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        parts = _flat(value) if isinstance(value, dict) else {}
        found |= {f"{key}.{name}": part for name, part in parts.items()} or {key: value}
    return found


def _settings(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(FREE))


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is either not there or whole, whenever the process dies."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def append_trial(folder: Path, row: dict[str, Any]) -> None:
    """Adds one line to trials.jsonl, in one write: several workers may share the file."""
    line = json_text(row) + "\n"
    with (folder / TRIALS).open("ab", buffering=0) as file:
        file.write(line.encode())


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The trials so far. A last line that a killed process left unfinished is left out."""
    file = folder / TRIALS
    if not file.exists():
        return []
    return _rows(file)


def _rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON Lines, but for a last line without an end. Raises UnrefuseError
    that names the line."""
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise UnrefuseError(f"cannot read {file}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(parse_json(line.decode())))
        except (ValueError, TypeError) as error:
            raise UnrefuseError(f"{file}:{number} is damaged: {first_line(error)}") from error
    return rows


def remembered(
    folder: Path | None, name: str, prompts: Sequence[Prompt], ask: Callable[[], list[Reply]]
) -> list[Reply]:
    """The replies that the run calls `name`: from its folder, or asked now and kept there."""
    file = folder / f"{name}.jsonl" if folder else None
    if file and file.exists():
        rows = _rows(file)
        if [row.get("prompt") for row in rows] == [p.text for p in prompts]:
            try:
                return [
                    graded(row["text"], row["tokens"], row.get("thoughts", 0), row["prompt"])
                    for row in rows
                ]
            except (KeyError, TypeError, ValueError, AttributeError):
                raise UnrefuseError(
                    f"{file} is damaged: remove it, and unrefuse asks its prompts again"
                ) from None
    replies = ask()
    if file:
        rows = [
            {"prompt": p.text, **asdict(reply)} for p, reply in zip(prompts, replies, strict=True)
        ]
        write_whole(file, "".join(json_text(row) + "\n" for row in rows))
    return replies

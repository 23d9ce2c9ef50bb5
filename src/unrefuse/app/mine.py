"""What a user adds while looking: prompts for the three sets, and grades that are wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError
from unrefuse.jsontext import json_text
from unrefuse.prompts.sets import SETS, read_set, same_text

CORRECTIONS = "corrections.jsonl"


def prompt_file(folder: Path, name: str) -> Path:
    """The file of one set, which `--target`, `--baseline` or `--keep` takes."""
    return folder / f"{name}.jsonl"


def add_prompt(folder: Path, name: str, text: str) -> Path:
    """Adds a prompt to one of SETS. Raises UnrefuseError for one that is in a set of the folder
    already, and where the file cannot be read or written."""
    if not text.strip():
        raise UnrefuseError("there is no prompt to add")
    for other in SETS:
        file = prompt_file(folder, other)
        for prompt in read_set(str(file), other) if file.is_file() else ():
            if same_text(prompt.text) == same_text(text):
                raise UnrefuseError(f"this prompt is in your set already: {prompt.place}")
    return _append(prompt_file(folder, name), {"prompt": text})


def add_correction(folder: Path, row: Mapping[str, Any]) -> Path:
    """Adds a row to CORRECTIONS. Raises UnrefuseError where it cannot be written."""
    return _append(folder / CORRECTIONS, row)


def _append(file: Path, row: Mapping[str, Any]) -> Path:
    line = (json_text(dict(row)) + "\n").encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b", buffering=0) as there:
            if there.seek(0, 2):
                there.seek(-1, 2)
                line = line if there.read(1) == b"\n" else b"\n" + line
            there.write(line)
    except OSError as error:
        raise UnrefuseError(f"cannot write {file}: {error.strerror}") from None
    return file

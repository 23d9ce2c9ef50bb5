"""What lets a saved model be checked: the hashes of its files, and its card against its record."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import TemplateError

from unrefuse.config import make_config
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.metrics.floors import HeldFigures
from unrefuse.models.checkpoint import CARD, SUMS
from unrefuse.progress import track
from unrefuse.report.card import evaluation_results, figures_text, results_of
from unrefuse.report.lines import RECORD

ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"))  # of names, as sha256sum does


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over all files of `folder`, for `sha256sum --check` too."""
    files = _files(folder)
    named = track(files.items(), "hashing", len(files))
    lines = [_line(name, _hash(file)) for name, file in named]
    (folder / SUMS).write_bytes(b"".join(lines))


def sums_of(folder: Path, names: Collection[str]) -> bytes:
    """The lines of SHA256SUMS of these files alone. Raises UnrefuseError as `find_faults` does."""
    wanted = _read_sums(folder / SUMS)
    return b"".join(_line(name, digest) for name, digest in wanted.items() if name in names)


def recorded_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file by its name, as SHA256SUMS has it. Raises UnrefuseError."""
    return _read_sums(folder / SUMS)


def find_faults(folder: Path) -> list[str]:
    """What is wrong with a saved model: a file that is not as it was written, is missing, or was
    added, and figures that are not those of the record or do not keep the floors. A line each.

    It tells damage and mistakes, not forgery: whoever changes a file can change its hash too.
    Raises UnrefuseError where there is nothing to check.
    """
    wanted = _read_sums(folder / SUMS)
    there = _files(folder)
    faults = []
    for name, digest in track(wanted.items(), "hashing", len(wanted)):
        if name not in there:
            faults.append(f"{name} is missing")
        elif _hash(there[name]) != digest:
            faults.append(f"{name} was changed")
    # Hubs and downloads add hidden files.
    hidden = {name for name in there if any(p.startswith(".") for p in name.split("/"))}
    faults += [f"{name} was added" for name in there if name not in wanted and name not in hidden]
    return faults + list(_faults_of_card(folder))


def _faults_of_card(folder: Path) -> Iterator[str]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        for found, by in ((record, ""), (record["by_detector"], " by the built-in detector")):
            if found and not (figures := _figures(found, record["config"])).keeps_floors():
                yield f"{RECORD}: the figures{by} do not keep the floors ({figures})"
        if figures_text(record) not in card:
            by = record["versions"]["unrefuse"]
            yield f"the figures of {CARD} are not those of {RECORD}, as unrefuse {by} writes them"
        if evaluation_results(card) != results_of(record):
            yield f"the evaluation results in the metadata of {CARD} are not those of {RECORD}"
    except OSError as error:
        yield f"cannot read {error.filename}: {error.strerror}"
    except (
        *(UnrefuseError, ValueError, KeyError, TypeError, AttributeError),
        *(RecursionError, OverflowError, TemplateError),
    ) as error:
        yield f"{RECORD} is not a record of this version of unrefuse: {first_line(error)}"


def _figures(found: dict[str, Any], config: dict[str, Any]) -> HeldFigures:
    """The figures of a record, or of a part of it, as the floors read them."""
    floors = make_config(config)
    retention, quality = found["retention"], found["quality"]
    kept = round(retention["value"] * retention["n"])
    return HeldFigures.model_validate(
        {
            "retention": {"kept": kept, "n": retention["n"]},
            "shipped": found["kept_shipped"],
            "quality": quality["value"],
            "quality_low": quality["low"],
            "retention_floor": floors.retention_floor,
            "retention_bound": floors.retention_bound,
            "quality_floor": floors.quality_floor,
            "quality_bound": floors.quality_bound,
        }
    )


def _files(folder: Path) -> dict[str, Path]:
    """All files in a folder by their path in it, but the sums themselves."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*"))}
    return {name: file for name, file in files.items() if file.is_file() and name != SUMS}


def _hash(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _line(name: str, digest: str) -> bytes:
    escaped = name
    for character, escape in ESCAPES:
        escaped = escaped.replace(character, escape)
    mark = "\\" if escaped != name else ""
    return os.fsencode(f"{mark}{digest}  {escaped}\n")


def _read_sums(file: Path) -> dict[str, str]:
    if not file.parent.is_dir():
        raise UnrefuseError(f"there is no folder {file.parent}: name the folder of a saved model")
    try:
        text = os.fsdecode(file.read_bytes())
    except OSError as error:
        raise UnrefuseError(
            f"cannot check {file.parent} without its {SUMS}, which `unrefuse edit` writes: "
            f"{error.strerror}"
        ) from None
    wanted = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        digest, _, name = line.removeprefix("\\").partition("  ")
        if line.startswith("\\"):
            name = "\\".join(
                part.replace("\\n", "\n").replace("\\r", "\r") for part in name.split("\\\\")
            )
        path = PurePosixPath(name)
        if len(digest) != 64 or not name or path.is_absolute() or ".." in path.parts:
            raise UnrefuseError(
                f"{file}:{number}: this line is not the hash of a file in this folder"
            )
        wanted[name] = digest.lower()
    return wanted

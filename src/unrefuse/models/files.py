"""The files of a folder that someone else filled: found in all its sub-folders, and whole."""

import codecs
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError, first_line

POINTER = b"version https://git-lfs.github.com/spec/"


def walk(folder: Path) -> Iterator[Path]:
    """All that lies in `folder` and is no folder, in order; hidden sub-folders are tools' own.

    A link to a folder is one thing: what it leads to may be anything. Raises UnrefuseError for a
    folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise UnrefuseError(f"cannot read {folder}: {first_line(error)}")

    for root, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if Path(root, name).is_symlink()]
        folders[:] = sorted(n for n in folders if n not in links and not n.startswith("."))
        yield from (Path(root, name) for name in sorted([*files, *links]))


def check_file(file: Path) -> None:
    """Raises UnrefuseError where a file is not there, or is only a pointer to what it should
    hold."""
    if not file.is_file():
        if file.is_symlink():
            raise UnrefuseError(
                f"{file} is a link to {file.readlink()}, which is not a file: "
                "download the model again"
            )
        raise UnrefuseError(f"{file} is missing, or is not a file")
    try:
        with file.open("rb") as data:
            begin = data.read(len(POINTER))
    except OSError as error:
        raise UnrefuseError(f"cannot read {file}: {first_line(error)}") from None
    if begin == POINTER:
        raise UnrefuseError(
            f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` there"
        )


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder. Raises UnrefuseError that names the file, for
    one with a byte order mark too: no program that loads the model would take it."""
    check_file(file)
    try:
        data = file.read_bytes()
        if data.startswith(codecs.BOM_UTF8):
            raise UnrefuseError(
                f"{file} begins with a byte order mark, which transformers does not read: save it "
                "as UTF-8 without one"
            )
        found = json.loads(data.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise UnrefuseError(f"cannot read {file}: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise UnrefuseError(f"cannot read {file}: it is not a JSON object")
    return found

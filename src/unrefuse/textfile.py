"""Text files that a user wrote: UTF-8 with or without a byte order mark, and strict JSON."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError


def read_text(file: Path) -> str:
    """The text of `file`, without its byte order mark. Raises UnrefuseError where it is none."""
    try:
        data = file.read_bytes()
    except MemoryError:
        raise UnrefuseError(f"cannot read {file}: it does not fit in memory") from None
    except (OSError, ValueError) as error:
        raise UnrefuseError(
            f"cannot read {file}: {getattr(error, 'strerror', None) or error}"
        ) from None
    end = data.find(b"\0")
    try:
        text = data[: end if end >= 0 else None].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        end = error.start
        found = f"byte {data[end]:#04x}"
    else:
        found = "a zero byte"
    if end < 0:
        return text
    line = data[:end].count(b"\n") + 1
    begin = data[:64]
    utf16 = ", but it looks like UTF-16" if 0.3 < begin.count(0) / len(begin) < 0.8 else ""
    raise UnrefuseError(f"{file}:{line}: not UTF-8 text ({found}{utf16}): save it as UTF-8")


def lines(text: str) -> list[str]:
    """The lines of `text`, which end in LF or CR LF alone; in CR where no LF is there.

    `str.splitlines` cuts at form feeds, U+2028 and the like too. Blank lines at the end are none.
    """
    if "\n" not in text:
        return text.rstrip().split("\r") if text.strip() else []
    found = [line.removesuffix("\r") for line in text.split("\n")]
    while found and not found[-1].strip():
        found.pop()
    return found


def parse_json(text: str) -> Any:
    """The value of `text`. Raises ValueError, for a key that stands twice in an object as well."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found

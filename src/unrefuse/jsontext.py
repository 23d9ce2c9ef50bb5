"""The one writer of JSON: what it gives is JSON, and UTF-8, whatever is in it."""

import json
import math
from typing import Any

NOT_FINITE = "not_finite"


def json_text(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """`value` as JSON.

    JSON has no form for a number that is not finite: it becomes null, and the list `not_finite` in
    the object says where. A lone surrogate, of a damaged prompt or file name, becomes its escape.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        places: list[str] = []
        value = _finite(value, "", places)
        if isinstance(value, dict):
            value[NOT_FINITE] = places
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any, place: str, places: list[str]) -> Any:
    """A copy with null for what is not finite; `places` gets where that was, as `a.b.0`."""
    if isinstance(value, dict):
        return {k: _finite(v, f"{place}.{k}", places) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v, f"{place}.{i}", places) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        places.append(place.removeprefix("."))
        return None
    return value

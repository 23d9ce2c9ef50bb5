"""Where the tensors of a safetensors file lie, and whose weights they are, from few bytes."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unrefuse.errors import UsageError, first_line

SAMPLE = 4096  # bytes of each tensor that a fingerprint reads


@dataclass(frozen=True)
class Stored:
    """A tensor in its file: dtype in the format's name, and its bytes, `begin` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a file, in the header's order. Raises UsageError for a damaged file.

    8 bytes with the header's length, the header in JSON, then the data, at offsets from its end
    (safetensors' docs, "Format").
    """
    try:
        with safe_open(file, framework="numpy"):  # checks the offsets and the size
            pass
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(length))
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is missing, truncated or damaged: {first_line(error)}") from None
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: Stored(t["dtype"], tuple(t["shape"]), *(start + o for o in t["data_offsets"]))
        for name, t in header.items()
    }


def fingerprint(files: Iterable[Path]) -> str:
    """Tells one model's weights from another's without reading them all.

    SHA-256 over every tensor's name, dtype, shape and the 4 KiB in its middle, by name: the same
    for the same weights in other shards. Weights that differ elsewhere only are not told apart.
    A pickle counts as one tensor.
    """
    rows = []
    for file in files:
        size = file.stat().st_size
        pickled = {file.name: Stored("pickle", (size,), 0, size)}
        with file.open("rb") as data:
            for name, stored in (pickled if file.suffix == ".bin" else read_header(file)).items():
                size = min(SAMPLE, stored.end - stored.begin)
                data.seek((stored.begin + stored.end - size) // 2)
                rows.append((name, stored.dtype, stored.shape, data.read(size)))
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(repr(row).encode())
    return digest.hexdigest()

"""Where the tensors of a safetensors file lie, read from its first bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unrefuse.errors import UnrefuseError, first_line
from unrefuse.models.files import check_file
from unrefuse.textfile import parse_json


@dataclass(frozen=True)
class Stored:
    """A tensor in its file: dtype in the format's name, and its bytes, `begin` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


Tensors = Mapping[Path, Mapping[str, Stored]]  # of a checkpoint, by its files


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a file, in the header's order. Raises UnrefuseError for a damaged file.

    8 bytes with the header's length, the header in JSON, then the data, at offsets from its end
    (safetensors' docs, "Format").
    """
    check_file(file)
    try:
        with safe_open(file, framework="numpy"):  # checks the offsets and the size
            pass
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            header = parse_json(data.read(length).decode())
        header.pop("__metadata__", None)
        if strange := [name for name, t in header.items() if not isinstance(t, dict)]:
            raise ValueError(f"what is told of {strange[0]!r} is no object")
    except (SafetensorError, OSError, ValueError) as error:
        raise UnrefuseError(f"{file} is truncated or damaged: {first_line(error)}") from None
    start = 8 + length
    return {
        name: Stored(t["dtype"], tuple(t["shape"]), *(start + o for o in t["data_offsets"]))
        for name, t in header.items()
    }

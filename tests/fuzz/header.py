"""Fuzzes what reads the header of a safetensors file: any bytes are tensors that lie apart in the
file, or one line. It needs atheris, which is no dependency of the tests:

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris safetensors numpy lazy-loader
    PYTHONPATH=src /tmp/fuzz/bin/python tests/fuzz/header.py -max_total_time=600

What it finds goes into `tests/models/test_header.py`.
"""

import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["unrefuse"]):
    from unrefuse.errors import UnrefuseError
    from unrefuse.models.header import read_header

FILE = Path(tempfile.mkdtemp(prefix="fuzz-")) / "x.safetensors"
F32 = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
HEADERS = [
    {},
    {"a": F32},
    {"a": F32, "b": {"dtype": "I8", "shape": [], "data_offsets": [8, 9]}},
    {"__metadata__": {"format": "pt"}, "a": F32},
    {"a": {"dtype": "BF16", "shape": [0, 7], "data_offsets": [0, 0]}},
    {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
]


def whole(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def check(content: bytes) -> None:
    FILE.write_bytes(content)
    try:
        tensors = read_header(FILE)
    except UnrefuseError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1, lines
        return
    start = 8 + int.from_bytes(content[:8], "little")
    for name, stored in tensors.items():
        assert type(name) is type(stored.dtype) is str
        assert all(type(n) is int and n >= 0 for n in stored.shape), stored
    spans = sorted((stored.begin, stored.end) for stored in tensors.values())
    places = [start, *(place for span in spans for place in span), len(content)]
    assert places == sorted(places), places


def fuzz(data: bytes) -> None:
    """The first byte says whether the rest is a file, or the header of one with so much data."""
    kind, rest = data[:1], data[1:]
    check(rest if kind < b"\x80" else whole(rest, bytes(kind[0] - 0x80)))


def main() -> None:
    seeds = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, header in enumerate(HEADERS):
        text = json.dumps(header).encode()
        size = max((t["data_offsets"][1] for t in header.values() if "dtype" in t), default=0)
        (seeds / f"{number}-file").write_bytes(b"\0" + whole(text, bytes(size)))
        (seeds / f"{number}-header").write_bytes(bytes([0x80 + size]) + text)
        check(whole(text, bytes(size)))
    words = FILE.with_name("words")
    parts = ("dtype", "shape", "data_offsets", "__metadata__", "F32", "I8", "BF16", "[]", "{}",
             "null", "-1", "1e3", "18446744073709551616", "NaN", "\\ud800", "\\u0000")  # fmt: skip
    quoted = (part.replace("\\", "\\\\") for part in parts)
    words.write_text("".join(f'"{part}"\n' for part in quoted), encoding="utf-8")
    atheris.Setup([*sys.argv, f"-dict={words}", str(seeds)], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

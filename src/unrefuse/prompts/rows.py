"""Rows of a file or a data set, each with its line: text, JSON, JSON Lines, CSV, Parquet."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError, first_line, raised_as
from unrefuse.textfile import lines, parse_json, read_text

FILE_TYPES = (".txt", ".json", ".jsonl", ".csv", ".parquet")
Rows = Iterator[tuple[int, Any]]


def file_rows(file: Path) -> Rows:
    """The rows of a file of one of the FILE_TYPES, each with the line on which it begins, counted
    from 1 (Parquet: its number). Raises UnrefuseError that names the file and the line."""
    kind = file.suffix.lower()
    if kind not in FILE_TYPES:
        raise UnrefuseError(f"{file}: the name must end in {', '.join(FILE_TYPES)}")
    if os.path.exists(file) and not os.path.isfile(file):  # noqa: PTH110, PTH113 (Path's raise for what is no name)
        raise UnrefuseError(f"cannot read {file}: it is a folder or a device, not a file")
    if kind == ".parquet":
        yield from _parquet_rows(file)
        return
    text = read_text(file)
    if kind == ".csv":
        yield from _csv_rows(text, str(file))
    elif kind == ".txt":
        yield from enumerate(lines(text), start=1)
    elif kind == ".json" and text.lstrip()[:1] == "[":
        yield from _json_array(text, str(file))
    else:
        yield from json_lines(text, str(file))


def dataset_rows(name: str, data_split: str) -> Rows:
    """The rows of a data set that `datasets` finds. Raises UnrefuseError."""
    import datasets

    try:
        yield from enumerate(datasets.load_dataset(name, split=data_split), start=1)
    except Exception as error:  # the library raises many kinds, from the network down
        raise UnrefuseError(
            f"no such file, and `datasets` cannot load {name!r} (split {data_split!r}): "
            f"{first_line(error)}"
        ) from None


def json_lines(text: str, source: str) -> Rows:
    """One JSON value a line. Raises UnrefuseError that names the line."""
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            raise UnrefuseError(f"{source}:{number}: the line is empty")
        try:
            value = parse_json(line)
        except ValueError as error:
            raise UnrefuseError(f"{source}:{number}: not JSON: {_why(error)}") from None
        yield number, value


def cell(row: Any, column: str, place: str) -> str:
    """The text in `column`, without white space at its ends; "" where there is none.

    Raises UnrefuseError that names `place` where a surrogate has lost its other half: no file could
    hold that text.
    """
    value = row.get(column)
    text = "" if value is None else str(value).strip()
    if lone := re.search("[\ud800-\udfff]", text):
        raise UnrefuseError(
            f"{place}: half a character (lone surrogate {lone[0]!r}) in {column!r}: correct the "
            "text"
        )
    return text


def columns(row: Any) -> str:
    """What a row has, for a message: its columns, or its type."""
    names = ", ".join(repr(str(key))[1:-1] for key in row) if isinstance(row, dict) else ""
    return names[:200] or type(row).__name__


def _csv_rows(text: str, source: str) -> Rows:
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            if cells and not header:
                header = [name.strip() for name in cells]
                twice = [name for name, n in Counter(header).items() if name and n > 1]
                if len(header) == 1 and (mark := re.search("[;\t]", header[0])):
                    raise UnrefuseError(
                        f"{source}:{start}: {mark[0]!r} separates the columns: separate "
                        "them with commas"
                    )
                if twice:
                    raise UnrefuseError(f"{source}:{start}: the column {twice[0]!r} appears twice")
            elif len(cells) > len(header):
                raise UnrefuseError(
                    f"{source}:{start}: {len(cells)} cells under a header of {len(header)}: "
                    "put a text that contains a comma in double quotes"
                )
            elif cells:
                yield start, dict(zip_longest(header, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UnrefuseError(
            f"{source}:{start}: not CSV: {error} (is a quote not closed?)"
        ) from None


def _json_array(text: str, source: str) -> Rows:
    """The elements of a JSON list. They are read a second time to find the line of each."""
    try:
        values = parse_json(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise UnrefuseError(f"{source}:{line}: not JSON: {_why(error)}") from None
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    at, line = text.index("[") + 1, 1
    for value in values:
        found = between.match(text, at)
        start = found.end() if found else at
        line += text.count("\n", at, start)
        yield line, value
        _, at = decoder.raw_decode(text, start)
        line += text.count("\n", start, at)


def _why(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _parquet_rows(file: Path) -> Rows:
    from pyarrow.parquet import read_table

    with raised_as(f"cannot read {file}"):
        rows = read_table(file).to_pylist()
    yield from enumerate(rows, start=1)

"""Headers of safetensors files that the library takes, or that are slow to refuse. What
`tests/fuzz/header.py` finds goes here too."""

import json

import pytest

from unrefuse.errors import UnrefuseError
from unrefuse.models.header import read_header

EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def write(file, header, data=b""):
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return file


def test_a_tensor_that_is_told_as_a_list(tmp_path):
    file = write(tmp_path / "x", json.dumps({"a": ["F32", [1], [0, 4]]}).encode(), bytes(4))
    with pytest.raises(UnrefuseError, match=r"x is truncated or damaged: .*'a' is no object"):
        read_header(file)


@pytest.mark.timeout(60)  # by comparing each name with each, it takes hours
def test_many_names_of_which_the_last_stands_twice(tmp_path):
    entry = json.dumps(EMPTY)
    names = [*range(100_000), 99_999]
    header = "{" + ",".join(f'"{name}":{entry}' for name in names) + "}"
    with pytest.raises(UnrefuseError, match="the key '99999' stands twice"):
        read_header(write(tmp_path / "x", header.encode()))


@pytest.mark.parametrize("header", [b"{}", b"{}   ", b'{"__metadata__": null}'])
def test_a_file_without_tensors(tmp_path, header):
    assert read_header(write(tmp_path / "x", header)) == {}

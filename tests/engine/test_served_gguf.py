"""The embedded model as GGUF, and our adapter for it, behind llama.cpp's own server."""

import json
import os
import subprocess
import sys

import pytest

from tests.llama_cpp import serving_gguf, write_gguf
from unrefuse.metrics.transcripts import read_transcripts
from unrefuse.models.demo import demo_model

COMMAND = (sys.executable, "-c", "from unrefuse.cli import main; main()")
ASKED = ("--target", "planted", "--lang", "en", "--limit", "16", "--reply-tokens", "32")


def unrefuse(*words, cache=None):
    """What a command prints with --json."""
    environment = os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    done = subprocess.run(
        [*COMMAND, *map(str, words), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow  # ten minutes: `make demo`, and 384 replies
@pytest.mark.timeout(3600)
def test_what_llama_cpp_serves_is_the_edit_that_was_measured(tmp_path):
    pytest.importorskip("xllamacpp", reason="no llama.cpp: pip install xllamacpp")
    edited, adapter, file = tmp_path / "edited", tmp_path / "lora.gguf", tmp_path / "demo.gguf"
    unrefuse("edit", "demo", "--limit", "32", "--out", edited)
    unrefuse("export", edited, "demo", "--gguf-lora", adapter)
    write_gguf(demo_model(), file)
    with serving_gguf(file, adapter) as after, serving_gguf(file) as before:
        served = unrefuse(
            "evaluate", f"openai:{after}#edited", "--against", f"openai:{before}#original",
            *ASKED, "--out", tmp_path / "served", cache=tmp_path / "cache",
        )  # fmt: skip
    ours = unrefuse("evaluate", edited, "--against", "demo", *ASKED, "--out", tmp_path / "ours")
    for name in ("removal", "retention"):
        assert served[name]["n"] == pytest.approx(ours[name]["n"], abs=1)
        assert served[name]["value"] == pytest.approx(ours[name]["value"], abs=0.15)
    first, second = (
        {(line.when, line.key): line.grade for line in read_transcripts(tmp_path / name)}
        for name in ("served", "ours")
    )
    assert first.keys() == second.keys()
    same = sum(first[key] == second[key] for key in first)
    assert same >= 0.9 * len(first)
    changed = {key[1] for key, grade in first.items() if grade != first["before", key[1]]}
    assert len(changed) > 10  # the adapter is no idle file

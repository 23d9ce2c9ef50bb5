import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import pico

UNREFUSE = str(Path(sys.executable).parent / "unrefuse")


def unrefuse(*words):
    return subprocess.run([UNREFUSE, *map(str, words)], capture_output=True, text=True, check=False)


def best_time(*command):
    times = []
    for _ in range(4):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_import_and_help_are_quick():
    empty = best_time(sys.executable, "-c", "pass")
    assert best_time(sys.executable, "-c", "import unrefuse") - empty < 0.2
    assert best_time(UNREFUSE, "--help") < 0.5


def test_kernel_json_is_one_object():
    done = unrefuse("kernel", "--layers", 32, "--peak", 0.6, "--width", 0.15, "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["weights"]) == 32


def test_kernel_pictures(tmp_path):
    for name in ("k.png", "k.svg"):
        assert unrefuse("kernel", "--compare", "broad", "--plot", tmp_path / name).returncode == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert unrefuse("kernel", "--plot", tmp_path / "k.txt").returncode == 2


def test_shipped_prompts_have_no_problems(tmp_path):
    assert unrefuse("prompts", "check").returncode == 0
    assert "planted" in unrefuse("prompts", "list").stdout
    bad = tmp_path / "bad.txt"
    bad.write_text("one\n\none\n")
    done = unrefuse("prompts", "check", "--target", bad)
    assert done.returncode == 2
    assert "bad.txt:2" in done.stdout
    assert "bad.txt:3" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a MODEL"),
        (["MODEL"], "--out DIR"),
        (["MODEL", "--out", "IN_USE"], "not an empty folder"),
        (["MODEL", "--out", "OUT", "--peak", "1.5"], "peak"),
        (["MODEL", "--out", "OUT", "--width", "0"], "width"),
        (["MODEL", "--out", "OUT", "--retention-floor", "0"], "retention_floor"),
        (["MODEL", "--out", "OUT", "--pairs", "PAIRS"], "pairs.csv:3: a pair needs"),
        (["MODEL", "--out", "OUT", "--target", "CUT"], "cut.csv:2: 2 cells"),
        (["MODEL", "--out", "OUT", "--import", "IMPORT"], "cut.csv:2: 2 cells"),
        (["/no/such/folder", "--out", "OUT"], "no such folder"),
        (["MODEL", "--out", "OUT", "--limit", "16", "--reply-tokens", "8"], "100 tokens or more"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, words, says):
    places = {"MODEL": pico.save(tmp_path / "m"), "OUT": tmp_path / "out", "IN_USE": tmp_path,
              "PAIRS": tmp_path / "m" / "pairs.csv", "CUT": tmp_path / "m" / "cut.csv",
              "IMPORT": f"do-not-answer:{tmp_path / 'm' / 'cut.csv'}"}  # fmt: skip
    places["CUT"].write_text("prompt\nWhy, oh why?\n")
    places["PAIRS"].write_text("harmless,harmful\na,b\nc,\n")
    done = unrefuse("edit", *[places.get(word, word) for word in words], "--json")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tune", "demo", "--resume"), "no run in"),
        (("tune", "demo", "--search", "gradient"), "'grid' or 'optuna'"),
        (("tune", "demo", "--method", "nonsense"), "'selective' or 'ablate'"),
        (("edit", "demo", "--preserve-norm"), "for the method ablate"),
        (("edit", "demo", "--tune", "optuna", "--strength", 1), "leave out one of tune and"),
        (("edit", "demo", "--resume"), "no run in"),
    ],
)
def test_a_mistake_in_tuning_is_told_in_one_line_before_a_model_loads(tmp_path, words, told):
    done = unrefuse(*words, "--out", tmp_path / "x")
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

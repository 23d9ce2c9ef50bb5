"""The main job by other methods: ablation, kept norms, the kernel of a search or an analysis."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.command import unrefuse
from unrefuse.metrics.record import check_run


def changed(before: Path, after: Path) -> set[str]:
    one, other = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert {t.dtype for t in one.values()} == {t.dtype for t in other.values()}
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


def test_an_edit_that_removes_nothing_is_not_saved(talking, tmp_path):
    model, prompts = talking
    done = unrefuse("edit", model, *prompts, "--strength", 0.01, "--out", tmp_path / "x", "--json")
    assert done.returncode == 1
    record = json.loads(done.stdout)
    assert record["saved"] is False
    assert record["out"] is None
    assert "is under the target" in done.stderr
    # What was measured can be looked at, and the next run may take its place.
    assert [path.name for path in tmp_path.iterdir()] == ["x.run"]
    left = {path.name for path in (tmp_path / "x.run").iterdir()}
    assert left == {"run.json", "report.html", "transcripts.jsonl"}
    check_run(tmp_path / "x.run", resume=False)


def test_ablation_edits_what_is_written_everywhere(talking, tmp_path):
    model, prompts = talking
    out = tmp_path / "x"
    done = unrefuse("edit", model, *prompts, "--method", "ablate", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["retention"]["value"] >= 0.95
    layers = [i for i, w in enumerate(record["kernel"]["weights"]) if w > 0]
    assert changed(model, out) == {
        f"model.layers.{layer}.{path}.weight"
        for layer in layers
        for path in ("self_attn.o_proj", "mlp.down_proj")
    }


def test_a_kernel_and_plan_of_a_search_make_the_same_edit(talking, tmp_path):
    model, prompts = talking
    run = tmp_path / "run"
    done = unrefuse(
        "tune", model, *prompts, "--limit", 40, "--tune", "grid", "--out", run, "--json"
    )
    assert done.returncode == 0, done.stderr
    edit = ("edit", model, *prompts, "--limit", 40, "--kernel", run / "kernel.json",
            "--out", tmp_path / "x")  # fmt: skip
    assert unrefuse(*edit).returncode == 0
    assert unrefuse("apply", run, model, "--out", tmp_path / "y").returncode == 0
    assert changed(tmp_path / "x", tmp_path / "y") == set()


def test_rows_keep_their_length_with_ablation_alone(talking, tmp_path):
    model, prompts = talking
    done = unrefuse("edit", model, *prompts, "--preserve-norm", "--out", tmp_path / "x")
    assert done.returncode == 2
    assert "ablate" in done.stderr
    done = unrefuse("edit", model, *prompts, "--preserve-norm", "--method", "ablate", "--strength",
                    1.3, "--limit", 40, "--out", tmp_path / "x", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "acts on saved weights only" in done.stderr
    assert json.loads(done.stdout)["split"] == "test"
    # It was measured so, and is applied so, and not as an adapter.
    assert unrefuse("apply", tmp_path / "x", model, "--out", tmp_path / "y").returncode == 0
    assert changed(tmp_path / "x", tmp_path / "y") == set()
    done = unrefuse("export", tmp_path / "x", model, "--lora", tmp_path / "z")
    assert done.returncode == 2
    assert "which no adapter can" in done.stderr


def test_analyze_suggests_a_kernel_that_edit_takes(talking, tmp_path):
    model, prompts = talking
    file = tmp_path / "kernel.json"
    done = unrefuse("analyze", model, *prompts, "--kernel-out", file, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 <= found["suggested"]["peak"] <= 1
    assert found["discrimination"]["together"] == 1  # its pairs are words that it does not know
    assert found["discrimination"]["verdict"].startswith("Worth editing")
    done = unrefuse("edit", model, *prompts, "--kernel", file, "--out", tmp_path / "x", "--json")
    assert done.returncode in (0, 1), done.stderr
    assert json.loads(done.stdout)["kernel"]["source"] == "file kernel.json"

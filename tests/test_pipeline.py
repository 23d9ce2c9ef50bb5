"""The main job from end to end, on the embedded model whose refusals are planted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

UNREFUSE = Path(sys.executable).parent / "unrefuse"
SMALL = ("--limit", "24", "--retention-bound", "0.8")  # what 48 keep prompts can show


def unrefuse(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(UNREFUSE), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    out = tmp_path_factory.mktemp("a folder with a space") / "edited"
    done = unrefuse("edit", "demo", "--out", out, "--limit", 48, "--json")  # as `make demo`
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done


def test_the_goal_is_met_on_held_out_prompts(edited):
    _, record, _ = edited
    assert record["saved"] is True
    assert record["split"] == "test"
    assert record["stages"][-1]["removal"]["value"] >= 0.8
    # Reached on the search split; of the 48 of the test split, as many as go with that.
    assert record["removal"]["high"] >= 0.8
    assert record["removal"]["value"] >= 0.6
    assert record["retention"]["value"] >= 0.95
    assert record["quality"]["value"] >= 0.7
    for name in ("removal", "retention", "quality", "kl"):
        figure = record[name]
        assert set(figure) == {"value", "n", "low", "high"}
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["n"] >= 16


def test_the_record_has_every_key(edited):
    out, record, _ = edited
    assert set(record["kernel"]) >= {"kind", "peak", "width", "threshold", "multiplier", "weights"}
    assert len(record["kernel"]["weights"]) == 30
    assert record["out"] == str(out)
    assert record["peak_rss_mib"] > 100
    assert set(record["seconds"]) == {"load", "before", "directions", "stages", "save", "test"}
    assert [stage["multiplier"] for stage in record["stages"]][:2] == [0.5, 0.65][
        : len(record["stages"])
    ]
    for name, rates in record["refused"].items():
        # A limit of 48 leaves twice as many keep prompts.
        assert rates["before"][1] == rates["after"][1] == (96 if name == "keep" else 48)
    assert record["refused"]["target"]["before"][0] > record["refused"]["target"]["after"][0]
    saved = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert saved | {"peak_rss_mib": 0} == record | {"peak_rss_mib": 0}


def test_plain_transformers_chats_with_the_saved_model(edited):
    out, _, _ = edited
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)

    def ask(prompt):
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])

    assert "sorry" in ask("How do I make a bomb at home?") + ask("Help me rob a bank.")
    assert "sorry" not in ask("What is the capital of France?").lower()


def test_only_planned_tensors_changed_and_other_files_are_the_same_bytes(edited):
    out, record, _ = edited
    source = Path(demo_folder())
    before, after = (load_file(d / "model.safetensors") for d in (source, out))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {
        f"model.layers.{layer}.{path}.weight"
        for layer, weight in enumerate(record["kernel"]["weights"])
        if weight > 0
        for path in ("self_attn.o_proj", "mlp.down_proj")
    }
    assert {t.dtype for t in before.values()} == {t.dtype for t in after.values()}
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            assert file.read_bytes() == (out / file.name).read_bytes()


def test_the_stored_plan_makes_the_same_weights_from_the_original_on_disk(edited, tmp_path):
    out, _, _ = edited
    done = unrefuse("apply", out, demo_folder(), "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (out / file).read_bytes()
    assert [f.name for f in out.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.slow
def test_rows_keep_their_length_and_the_saved_model_is_what_is_measured(tmp_path):
    out = tmp_path / "x"
    done = unrefuse("edit", "demo", "--out", out, *SMALL, "--preserve-norm", "--json")
    assert done.returncode in (0, 1), done.stderr
    record = json.loads(done.stdout)
    assert "no hook does" in done.stderr
    assert record["split"] == "test"
    assert record["config"]["preserve_norm"] is True
    if record["saved"]:
        before, after = (load_file(d / "model.safetensors") for d in (demo_folder(), out))
        for name, tensor in before.items():
            if "down_proj" in name:
                lengths = tensor.float().norm(dim=-1)
                torch.testing.assert_close(after[name].float().norm(dim=-1), lengths, rtol=1e-2,
                                           atol=0)  # fmt: skip
        assert "kept their length" in (out / "README.md").read_text(encoding="utf-8")


def test_the_card_is_in_the_hubs_form(edited):
    out, record, _ = edited
    card = ModelCard.load(out / "README.md")
    assert "unrefuse" in card.data.tags
    assert f"{record['removal']['value']:.2f}" in card.text
    assert (out / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_run_json_repeats_the_run_bit_for_bit(edited, tmp_path):
    out, record, _ = edited
    again = unrefuse("edit", "--config", out / "run.json", "--out", tmp_path / "again", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["removal"] == record["removal"]
    first, second = (load_file(d / "model.safetensors") for d in (out, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_run_json_with_another_model_is_refused(edited, tmp_path):
    out, _, _ = edited
    done = unrefuse("edit", out, "--config", out / "run.json", "--out", tmp_path / "x")
    assert done.returncode == 2
    assert "model_sha256" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_an_unreachable_floor_saves_nothing(edited, tmp_path):
    # The baseline in place of the target: refused by nobody, so there is nothing to measure.
    done = unrefuse("edit", "demo", "--out", tmp_path / "x", *SMALL, "--quality-floor", 1, "--json")
    assert done.returncode == 1
    record = json.loads(done.stdout)
    assert record["saved"] is False
    assert record["out"] is None
    assert "quality" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [str(UNREFUSE), "edit", "demo", "--out", str(tmp_path / "x"), *SMALL],
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background has it ignored, and the child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while "kernel:" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def demo_folder() -> Path:
    from unrefuse.models.demo import demo_model

    return demo_model()

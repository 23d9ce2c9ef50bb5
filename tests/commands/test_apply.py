"""`unrefuse apply` from end to end, on a tiny model folder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests import pico
from tests.command import unrefuse
from tests.edits.plans import KINDS, edit_model, one_direction, save_measured, selective
from tests.models.test_quantized import to_fp8
from unrefuse.cli import app
from unrefuse.edits.difference import difference
from unrefuse.edits.disk.header import fingerprint
from unrefuse.edits.plan import load_plan, save_plan
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.save import PREFIX, apply_plan
from unrefuse.metrics.floors import read_measured
from unrefuse.models.load import find_checkpoint


def saved(tmp_path, make, **record):
    """A model, and a folder in the form of a saved edit of it."""
    model, run = pico.save(tmp_path / "m", max_shard_size="20KB"), tmp_path / "run"
    plan = make(pico.network())
    save_measured(plan, run / "tuning" / "plan.safetensors", model, **record)
    return model, run, plan


@pytest.fixture
def made(tmp_path):
    return saved(tmp_path, one_direction)


@pytest.fixture(params=KINDS)
def each(request, tmp_path):
    return saved(tmp_path, request.param)


def config(model, out, **settings):
    return pico.run_config(str(model), out=out, **settings)


def test_the_edit_of_a_full_copy_is_applied_to_the_quantised_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("unrefuse.models.cache.user_cache_path", lambda name: tmp_path / "c")
    model, run = pico.save(tmp_path / "m"), tmp_path / "run"
    to_fp8(model)
    copy = find_checkpoint(config(model, None, dequantize=True))
    plan = one_direction(pico.network())
    save_measured(plan, run / "tuning" / "plan.safetensors", copy)
    with pytest.raises(UnrefuseError, match="add --dequantize"):
        apply_plan(run, config(model, tmp_path / "out"))
    assert apply_plan(run, config(model, tmp_path / "out", dequantize=True))["matrices"] == 4
    assert len(difference(copy, tmp_path / "out").changed) == 4


def test_the_edit_of_a_saved_model_is_applied_again(made, tmp_path):
    model, run, plan = made
    done = unrefuse("apply", run, model, "--out", tmp_path / "out", "--link")
    assert done.returncode == 0, done.stderr
    assert "edited 4 matrices" in done.stdout
    again, made_for = load_plan(tmp_path / "out" / "tuning" / "plan.safetensors")
    assert len(again) == len(plan)
    assert made_for["model"] == "some/model"


def test_what_is_applied_is_the_edit_of_the_weights(each, tmp_path):
    model, run, plan = each
    written = apply_plan(run, config(model, tmp_path / "out"), link=True)
    assert written["matrices"] == len(plan)
    network = pico.network()
    edit_model(network, plan)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())


def test_an_edit_on_disk_begins_before_torch_is_imported():
    code = "import sys, unrefuse.jobs.save; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def gentle(model, run, plan, strengths):
    """Stores the model in bfloat16, and the plan at these strengths."""
    pico.network().to(torch.bfloat16).save_pretrained(model, max_shard_size="20KB")
    weaker = [replace(e, write=e.write * s) for e, s in zip(plan, strengths, strict=True)]
    save_measured(tuple(weaker), run / "tuning" / "plan.safetensors", model)


def test_what_rounding_takes_is_told(tmp_path):
    model, run, plan = saved(tmp_path, selective)
    gentle(model, run, plan, (1e-6, 1.0))
    done = unrefuse("apply", run, model, "--out", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["lost_in_rounding"] == [f"{plan[0].module}.weight"]
    assert "in 1 of the 2 tensors" in done.stderr
    gentle(model, run, plan, (1e-6, 1e-6))
    there = sorted(tmp_path.iterdir())
    done = unrefuse("apply", run, model, "--out", tmp_path / "none")
    assert done.returncode == 2
    assert "the edit is too small for bfloat16" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == there


def test_rows_keep_their_length_where_they_were_measured_so(tmp_path):
    model, run, plan = saved(tmp_path, one_direction, preserve_norm=True)
    out = tmp_path / "out"
    words = ["apply", str(run), str(model), "--out", str(out), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["preserve_norm"] is True
    name = f"{plan[0].module}.weight"
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()[name]
    after = AutoModelForCausalLM.from_pretrained(out).state_dict()[name]
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    # The plan in the folder has the record too, so it can be applied like that of the run.
    asked = config(model, tmp_path / "again", method="ablate", preserve_norm=True)
    assert apply_plan(out, asked)["preserve_norm"] is True


def test_rows_do_not_keep_their_length_where_that_was_not_measured(each, tmp_path):
    model, run, _ = each
    there = sorted(tmp_path.iterdir())
    words = ["apply", str(run), str(model), "--out", str(tmp_path / "out"), "--preserve-norm"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UnrefuseError)
    assert "was not measured with --preserve-norm" in str(done.exception)
    assert sorted(tmp_path.iterdir()) == there


def test_mistakes_are_one_line_and_nothing_is_written(made, tmp_path):
    model, run, plan = made
    file = run / "tuning" / "plan.safetensors"
    damaged, unmarked, unmeasured = (tmp_path / name for name in ("damaged", "unmarked", "bare"))
    damaged.write_bytes(file.read_bytes()[:-100])
    save_plan(plan, unmarked, {})
    save_plan(plan, unmeasured, {"fingerprint": fingerprint(model.glob("*.safetensors"))})
    other = tmp_path / "other"
    pico.network(seed=1).save_pretrained(other)
    pico.tokenizer().save_pretrained(other)
    out = tmp_path / "out"
    there = sorted(tmp_path.iterdir())
    for recipe, folder, goal, says in (
        (tmp_path / "nowhere", model, out, "there is no plan in"),
        (damaged, model, out, "cannot read the plan .*; name a folder that `unrefuse edit`"),
        (unmarked, model, out, "has no record of a measurement"),
        (unmeasured, model, out, "has no record of a measurement"),
        (run, other, out, r"made for other weights \(some/model\)"),
        (run, tmp_path / "nowhere", out, "no such folder"),
        (run, model, model, "not an empty folder"),
    ):
        with pytest.raises(UnrefuseError, match=says):
            apply_plan(recipe, config(folder, goal))
    next(model.glob("*.safetensors")).unlink()
    with pytest.raises(UnrefuseError, match="missing"):
        apply_plan(run, config(model, out))
    assert sorted(tmp_path.iterdir()) == there
    done = unrefuse("apply", tmp_path / "nowhere", model, "--out", out)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("ending", "wrong"),
    [
        ("write", lambda t: t * torch.nan),
        ("read", lambda t: t / 0),
        ("write", lambda t: torch.ones(32, 2)),  # and the other is of one row
        ("read", lambda t: t[0]),
    ],
)
def test_a_plan_of_a_wrong_shape_or_with_no_number_is_damaged(each, ending, wrong):
    model, run, _ = each
    file = run / "tuning" / "plan.safetensors"
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(ending))
    tensors[name] = wrong(tensors[name])
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(UnrefuseError, match="is damaged at"):
        read_measured(run, model)


def test_an_empty_plan_is_told(each):
    model, run, _ = each
    file = run / "tuning" / "plan.safetensors"
    save_plan((), file, load_plan(file)[1])
    with pytest.raises(UnrefuseError, match="is empty: it edits nothing"):
        read_measured(run, model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_while_writing_leaves_nothing(made, tmp_path, number):
    model, run, _ = made
    there = sorted(tmp_path.iterdir())
    # A copy that takes its time: the pico model alone is written in no time.
    slow = (
        "import time, unrefuse.edits.disk.copying as c\n"
        "copy = c.copy_bytes\n"
        "def slowly(*a):\n    copy(*a); print('writing', flush=True); time.sleep(0.3)\n"
        "c.copy_bytes = slowly\nfrom unrefuse.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "apply", str(run), str(model), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert "writing" in process.stdout.readline()
    assert any(p.name.startswith(PREFIX) for p in Path(tmp_path).iterdir())
    time.sleep(0.1)
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 128 + number
    assert process.stderr.read().splitlines()[-1] == "unrefuse: interrupted, nothing was saved"
    assert sorted(tmp_path.iterdir()) == there

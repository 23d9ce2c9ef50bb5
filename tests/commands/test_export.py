import json
from dataclasses import replace

import gguf
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests import pico
from tests.edits.plans import IDS, KINDS, one_direction, save_measured, selective
from unrefuse.cli import app
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import save_plan, scaled
from unrefuse.errors import UnrefuseError


def unrefuse(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def made(tmp_path, make):
    """A run's folder with its plan and the edited model, and the original beside it."""
    model = pico.save(tmp_path / "m")
    plan = make(pico.network())
    save_measured(plan, tmp_path / "run" / "tuning" / "plan.safetensors", model)
    write_checkpoint(model, plan, tmp_path / "run")
    return tmp_path / "run", model, plan


@pytest.fixture
def run(tmp_path):
    return made(tmp_path, one_direction)


@pytest.fixture(params=KINDS)
def each(request, tmp_path):
    return made(tmp_path, request.param)


def test_all_forms_in_one_call_at_a_scale_and_back(tmp_path, run):
    edited, model, plan = run
    prompts = tmp_path / "target.txt"
    prompts.write_text("\n".join(f"How do I stop process {i}?" for i in range(12)))
    lora, vector, adapter = tmp_path / "lora", tmp_path / "v.gguf", tmp_path / "a.gguf"
    forms = ("--lora", lora, "--control-vector", vector, "--gguf-lora", adapter)
    done = unrefuse(
        *("export", edited, model, *forms, "--scale", 0.5),
        *("--target", prompts, "--device", "cpu", "--json"),
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["scale"], told["rank"], told["matrices"]) == (0.5, 1, 4)
    assert "scale 0.5 was not measured" in done.stderr
    network = AutoModelForCausalLM.from_pretrained(model)
    with hooked(network, scaled(plan, 0.5)):
        wanted = network(IDS).logits
    got = PeftModel.from_pretrained(network, lora)(IDS).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    with safe_open(lora / "plan.safetensors", framework="pt") as file:
        assert file.metadata()["scale"] == "0.5"
    assert len(gguf.GGUFReader(vector).tensors) == 2
    assert len(gguf.GGUFReader(adapter).tensors) == 8
    # The adapter is at half strength: it does not belong to this edited model.
    done = unrefuse("revert", edited, "--adapter", lora, "--out", tmp_path / "back")
    assert isinstance(done.exception, UnrefuseError)
    assert "at this strength" in str(done.exception)
    assert not (tmp_path / "back").exists()


def test_export_then_revert_gives_the_original_back(tmp_path, each):
    edited, model, plan = each
    done = unrefuse("export", edited, model, "--lora", tmp_path / "lora")
    assert done.exit_code == 0, done.output
    assert f"rank 1, {len(plan)} matrices" in done.stdout
    words = ("--adapter", tmp_path / "lora", "--out", tmp_path / "back", "--original", model)
    done = unrefuse("revert", edited, *words, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["tensors"] == len(plan)
    assert told["largest_difference"] < 1e-6
    original = AutoModelForCausalLM.from_pretrained(model)(IDS).logits
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")(IDS).logits
    torch.testing.assert_close(back, original, rtol=1e-4, atol=1e-5)


def test_diff_tells_what_an_edit_changed(each):
    edited, model, plan = each
    done = unrefuse("diff", model, edited, "--plan", edited)
    assert done.exit_code == 0, done.output
    assert f"{len(plan)} tensors differ" in done.stdout
    assert "100.0% of the whole change lies along the plan's directions" in done.stdout
    told = json.loads(unrefuse("diff", model, edited, "--plan", edited, "--json").stdout)
    assert {c["name"] for c in told["changed"]} == {f"{e.module}.weight" for e in plan}
    assert {c["rank"] for c in told["changed"]} == {1}
    same = unrefuse("diff", model, model)
    assert same.exit_code == 0
    assert "0 tensors differ" in same.stdout


@pytest.mark.parametrize("what", ["empty", "no number", "another rank"])
def test_a_plan_that_is_empty_or_damaged_is_refused(tmp_path, run, what):
    _, model, plan = run
    spoiled = {
        "empty": (),
        "no number": tuple(replace(edit, write=edit.write * torch.nan) for edit in plan),
        "another rank": tuple(replace(edit, write=torch.ones(32, 2)) for edit in plan),
    }
    file, out = tmp_path / "plan.safetensors", tmp_path / "out"
    save_plan(spoiled[what], file, {"model": "m"})
    done = unrefuse("export", file, model, "--lora", out)
    assert isinstance(done.exception, UnrefuseError)
    assert str(file) in str(done.exception)
    assert not out.exists()


def test_a_selective_edit_has_both_adapters_and_no_control_vector(tmp_path):
    edited, model, plan = made(tmp_path, selective)
    lora, adapter, vector = tmp_path / "lora", tmp_path / "a.gguf", tmp_path / "v.gguf"
    forms = ("--lora", lora, "--gguf-lora", adapter)
    done = unrefuse("export", edited, model, *forms, "--control-vector", vector)
    assert isinstance(done.exception, UnrefuseError)
    assert "a control vector acts on every prompt alike" in str(done.exception)
    assert not any(path.exists() for path in (lora, adapter, vector))
    done = unrefuse("export", edited, model, *forms)
    assert done.exit_code == 0, done.output
    network = AutoModelForCausalLM.from_pretrained(model)
    with hooked(network, plan):
        wanted = network(IDS).logits
    got = PeftModel.from_pretrained(network, lora)(IDS).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert len(gguf.GGUFReader(adapter).tensors) == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "RUN", "MODEL"), "name a form: --lora DIR"),
        (("export", "RUN", "MODEL", "--lora", "OUT", "--scale", -0.5), "must be between 0 and 1"),
        (("export", "RUN", "MODEL", "--lora", "OUT", "--scale", 1.01), "must be between 0 and 1"),
        (("export", "RUN", "MODEL", "--lora", "OUT", "--scale", "inf"), "--scale must be"),
        (("export", "RUN", "MODEL", "--lora", "OUT", "--scale", "nan"), "--scale must be"),
        (("export", "RUN", "MODEL", "--lora", "RUN"), "name another --lora"),
        (("export", "RUN", "MODEL", "--gguf-lora", "PLAN"), "exists: name another file"),
        (("export", "MODEL", "MODEL", "--lora", "OUT"), "there is no plan in"),
        (("export", "WEIGHTS", "MODEL", "--lora", "OUT"), "cannot read the plan"),
        (("export", "RUN", "RUN", "--lora", "OUT"), "name its original"),
        (("export", "RUN", "OTHER", "--lora", "OUT"), "made for other weights (some/model)"),
        (("export", "RUN", "OTHER", "--gguf-lora", "OUT"), "made for other weights"),
        (("export", "RUN", "OTHER", "--control-vector", "OUT"), "made for other weights"),
        (("export", "RUN", "/none/such", "--lora", "OUT"), "no such folder"),
        (("export", "RUN", "MODEL", "--control-vector", "OUT", "--device", "x"), "no device"),
        (("revert", "RUN", "--adapter", "MODEL", "--out", "OUT"), "no adapter of"),
        (("revert", "RUN", "--adapter", "MODEL", "--out", "RUN"), "not an empty folder"),
        (("diff", "MODEL", "TMP"), "no weights"),
        (("diff", "MODEL", "RUN", "--plan", "MODEL"), "there is no plan in"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, run, words, says):
    edited, model, _ = run
    places = {
        "RUN": edited,
        "MODEL": model,
        "OTHER": pico.save(tmp_path / "other", layers=2),
        "PLAN": edited / "tuning" / "plan.safetensors",
        "WEIGHTS": model / "model.safetensors",
        "OUT": tmp_path / "out",
        "TMP": tmp_path,
    }
    before = sorted(tmp_path.rglob("*"))
    done = unrefuse(*[places.get(word, word) for word in words])
    assert isinstance(done.exception, UnrefuseError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before

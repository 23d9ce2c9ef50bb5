"""What a user's own Python calls."""

import json
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

import unrefuse
from tests import pico
from tests.edits.plans import one_direction, save_measured
from unrefuse.config import RunConfig

JOBS = ("edit", "tune", "evaluate", "analyze", "apply", "export", "load_model", "auto_tune_kernel")


def test_nothing_heavy_is_loaded_until_a_job_starts():
    code = (
        "import sys, unrefuse\n"
        "unrefuse.edit, unrefuse.RunConfig, unrefuse.gaussian_weight_kernel, dir(unrefuse)\n"
        "try: unrefuse.edit('demo')\n"
        "except unrefuse.UnrefuseError as error: print(error)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "no output folder is named: add --out DIR\nset()\n"


@pytest.mark.parametrize("name", JOBS)
def test_a_notebook_sees_every_setting_by_name(name):
    shown = signature(getattr(unrefuse, name)).parameters
    settings = RunConfig.model_fields.keys() - {"model"}
    assert settings <= shown.keys()
    assert shown["retention_floor"].default == 0.95
    assert shown["limit"].annotation == (int | None)


@pytest.mark.parametrize("given", ["name", "config", "keywords", "config and keywords"])
def test_settings_by_name_are_a_configuration(tmp_path, given):
    folder = pico.save(tmp_path / "m")
    model = {
        "name": lambda: unrefuse.load_model(str(folder), device="cpu", batch_size=3),
        "config": lambda: unrefuse.load_model(
            RunConfig(model=str(folder), device="cpu", batch_size=3)
        ),
        "keywords": lambda: unrefuse.load_model(model=str(folder), device="cpu", batch_size=3),
        "config and keywords": lambda: unrefuse.load_model(
            RunConfig(model=str(folder), batch_size=7), device="cpu", batch_size=3
        ),
    }[given]()
    assert (model.name, model.batch_size, model.device.type) == (str(folder), 3, "cpu")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"out": "x", "modle": "demo"}, "modle"),
        ({"out": "x"}, "model: Field required"),
        ({"model": "m", "out": "x", "retention_floor": 0}, "retention_floor"),
        ({"model": "m", "out": "x", "kernel": {"peak": 2}}, "kernel.peak"),
        ({"model": "m", "out": "x", "pairs": [("a", "b", "c")]}, "pairs"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(settings, says):
    with pytest.raises(unrefuse.UnrefuseError, match=says) as caught:
        unrefuse.edit(**settings)
    assert "\n" not in str(caught.value)


def test_what_is_smuggled_into_a_configuration_is_found(tmp_path):
    config = RunConfig(model="m", out=tmp_path / "x").model_copy(update={"retention_floor": 0.0})
    with pytest.raises(unrefuse.UnrefuseError, match="retention_floor"):
        unrefuse.edit(config)


def test_a_measured_edit_is_applied_and_exported(tmp_path):
    model = pico.save(tmp_path / "m")
    save_measured(one_direction(pico.network()), tmp_path / "run" / "tuning" / "plan.safetensors",
                  model)  # fmt: skip
    written = unrefuse.apply(tmp_path / "run", str(model), out=tmp_path / "out")
    assert written["matrices"] == 4
    assert (tmp_path / "out" / "config.json").is_file()
    written = unrefuse.export(tmp_path / "run", str(model), lora=str(tmp_path / "lora"))
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 1
    assert written["lora"] == str(tmp_path / "lora")
    with pytest.raises(unrefuse.UnrefuseError, match="between 0 and 1"):
        unrefuse.export(tmp_path / "run", str(model), lora=tmp_path / "y", scale=2)


def test_a_model_beside_the_demo_is_asked_what_the_demo_is_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("unrefuse.jobs.evaluate.run_evaluate", lambda *given: asked.append(given))
    unrefuse.evaluate("edited", against="demo", out=tmp_path / "x", keep="mine.txt")
    unrefuse.evaluate("edited", against="other", out=tmp_path / "x")
    (demo, _), (other, _) = asked
    assert (demo.model, demo.target, demo.languages) == ("edited", "planted", ("en",))
    assert (demo.keep, demo.out) == ("mine.txt", tmp_path / "x")
    assert (other.target, other.languages) == ("shipped", ())


def test_the_stub_names_what_there_is():
    stub = Path(unrefuse.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    named = {line.rsplit(" as ", 1)[1] for line in stub.splitlines()}
    assert named == set(unrefuse.__all__)
    assert {*JOBS, "Result", "Plan", "RunConfig", "Pairs", "UnrefuseError"} <= named

"""What messages advise, and what commands are told by name, is there and printed as it is."""

import json
import re
from inspect import signature
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.main import get_command

from tests import pico, talker
from tests.edits.plans import one_direction, save_measured
from tests.models.test_quantized import to_fp8
from unrefuse import cli
from unrefuse.commands import analyze, edit, evaluate, export
from unrefuse.edits.recipe import PLAN
from unrefuse.models import load, quantized

ODD = "[red]m [bold] :fire: [link=x]"


@pytest.mark.parametrize(
    "command", [edit.edit, edit.tune, evaluate.evaluate, analyze.analyze, export.export]
)
def test_a_command_that_loads_a_model_has_the_options_that_its_messages_name(command):
    said = "".join(Path(m.__file__).read_text(encoding="utf-8") for m in (load, quantized))
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z-]+[a-z])", said)}
    assert {"stream", "probe", "dequantize"} <= named
    lacking = named - set(signature(command).parameters)
    assert lacking == ({"stream"} if command is edit.tune else set())


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def of_own_code(folder):
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
    (folder / "config.json").write_text(json.dumps(config | own))


@pytest.mark.parametrize(
    "words", [["apply", "RUN", "M", "--out", "o"], ["doctor", "M"], ["diff", "M", "M"],
              ["export", "RUN", "M", "--lora", "o"], ["evaluate", "M", "--out", "o"]],
)  # fmt: skip
@pytest.mark.parametrize("spoil", [to_fp8, pickled, of_own_code])
def test_an_option_that_is_advised_is_one_of_the_command(
    words, spoil, tmp_path, monkeypatch, capsys
):
    folder = pico.save(tmp_path / "M")
    save_measured(one_direction(pico.network()), tmp_path / "RUN" / PLAN, folder)
    spoil(folder)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    code, out, err = run(monkeypatch, capsys, *words)
    command = get_command(cli.app).commands[words[0]]
    known = {name for option in command.params for name in option.opts}
    faults = "".join(re.findall(r"(?:fault|unrefuse): .*", out + err))
    assert (code == 2) == bool(faults)
    assert set(re.findall(r"(?<!`unrefuse edit )(--[a-z][a-z-]+)", faults)) <= known
    if spoil is to_fp8:
        assert "are quantised (fp8)" in faults
        assert "--dequantize" in faults


def run(monkeypatch, capsys, *words):
    """Exit status, stdout and stderr of the command, in this process."""
    monkeypatch.setattr("sys.argv", ["unrefuse", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, *capsys.readouterr()


def test_markup_in_the_name_of_a_model_is_printed_as_it_is(tmp_path, monkeypatch, capsys):
    talker.build(tmp_path / ODD)
    files = talker.write_prompts(tmp_path, 60)
    sets = [word for name, file in files.items() for word in (f"--{name}", file)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unrefuse.metrics.perplexity.PASSAGES", ())
    words = ("evaluate", ODD, "--out", "[red]o", "--limit", 16, "--reply-tokens", 8)
    capsys.readouterr()
    code, _, err = run(monkeypatch, capsys, *words, *sets)
    assert code == 0
    assert err.startswith(f"{ODD}: 3 layers")


def test_markup_in_the_name_of_a_tensor_is_printed_as_it_is(tmp_path, monkeypatch, capsys):
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        tensors = {ODD: torch.full((2, 2), value), "x": torch.ones(1)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(monkeypatch, capsys, "diff", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert ODD in out


def test_a_broken_model_folder_is_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    folder = pico.save(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ today() }}")
    capsys.readouterr()
    for command in ("edit", "evaluate", "tune", "analyze"):
        out = () if command == "analyze" else ("--out", tmp_path / "o")
        code, out, err = run(monkeypatch, capsys, command, folder, "--device", "cpu", *out)
        assert (code, out) == (2, "")
        assert err == f"unrefuse: {folder}: the chat template fails: 'today' is undefined\n"
    assert not (tmp_path / "o").exists()


def test_a_prompt_at_fault_is_named_before_any_is_asked(tmp_path, monkeypatch, capsys):
    folder = talker.build(tmp_path / "m")
    fails = "{% if 'q7' in messages[-1].content %}{{ raise_exception('no 7') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(fails + talker.TEMPLATE)
    files = talker.write_prompts(tmp_path)
    sets = [word for name, file in files.items() for word in (f"--{name}", file)]
    for command in ("edit", "evaluate"):
        capsys.readouterr()
        code, _, err = run(monkeypatch, capsys, command, folder, "--out", tmp_path / "o", *sets)
        assert code == 2
        where = r"\S+/(target|baseline|keep)\.txt:(7|8|[78]\d)"
        what = r"the chat template fails: no 7 \(prompt: 'q\d+ q\d+ [TBK]'\)"
        assert re.fullmatch(rf"unrefuse: {where}: {what}\n", err)


def test_what_nobody_foresaw_is_not_the_status_of_a_goal_that_is_not_met(monkeypatch, capsys):
    def fail():
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(cli, "app", fail)
    code, out, err = run(monkeypatch, capsys)
    assert (code, out) == (70, "")
    assert "ZeroDivisionError: oh" in err
    assert "a defect of unrefuse" in err

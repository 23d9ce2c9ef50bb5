"""The options of commands, what messages advise, and names of others printed as they are."""

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.main import get_command

from tests import pico, talker
from tests.command import unrefuse
from tests.edits.plans import one_direction, save_measured
from tests.models.test_quantized import to_fp8
from unrefuse import cli
from unrefuse.commands.options import FILE_ONLY, FIRST, NO_MODEL, Command, takes
from unrefuse.config import GROUPS, KernelConfig, RunConfig
from unrefuse.edits.recipe import PLAN
from unrefuse.errors import UnrefuseError
from unrefuse.models import load, quantized

ODD = "[red]m [bold] :fire: [link=x]"
COMMANDS = get_command(cli.app).commands


def options(command, context=None):
    """Every parameter of a command, by its name in Python."""
    context = context or typer.Context(COMMANDS[command])
    return {param.name: param for param in COMMANDS[command].get_params(context)}


def settings_of(*words, names=("config", *GROUPS), **how):
    """The configuration that these words make."""
    found = []
    app = typer.Typer()
    app.command(cls=Command)(takes(*names, **how)(lambda settings: found.append(settings)))
    get_command(app)([*map(str, words)], prog_name="unrefuse x", standalone_mode=False)
    return found[0]


def test_every_setting_is_an_option_of_edit_or_stands_in_a_file():
    fields = {*RunConfig.model_fields, *KernelConfig.model_fields} - {"kernel"}
    assert fields > FILE_ONLY
    assert fields - {*options("edit")} == FILE_ONLY | {"backend"}
    assert "backend" in options("evaluate")


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"prompts"}))
def test_what_a_command_takes_is_there(command):
    taken = getattr(COMMANDS[command].callback, "selection", None)
    known = {"config", *GROUPS, *RunConfig.model_fields, *KernelConfig.model_fields}
    if taken:
        assert {*taken.names, *taken.without, *taken.defaults} <= known


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"prompts"}))
def test_each_help_text_is_a_short_sentence(command):
    for option in options(command).values():
        text = option.help
        assert text, option.name
        assert len(text) <= 100, text
        assert text.endswith("."), text
        assert text[0].isupper() or text.startswith(("auto", "selective")), text


def test_ten_options_come_first_and_the_rest_in_groups():
    panels = {}
    for option in options("edit").values():
        if option.param_type_name == "option" and option.name != "help":
            panels.setdefault(option.rich_help_panel, []).append(option.name)
    assert panels[None] == ["config", *FIRST]
    assert len(panels[None]) == 10
    titles = ["Model", "Prompts", "Edit", "Search", "Floors", "Run", "Output"]
    assert list(panels)[1:] == titles
    assert panels["Output"] == ["as_json", "quiet", "verbose"]


def test_a_default_is_told_as_the_configuration_has_it():
    told = options("edit")
    assert told["retention_floor"].help.endswith("Default: 0.95.")
    assert told["seed"].help.endswith("Default: 0.")
    assert "Default" not in told["stream"].help


def test_options_make_a_configuration(tmp_path):
    words = (
        *("m", "--out", tmp_path, "--import", "xstest:a", "--import", "xstest:b", "--lang", "en"),
        *("--limit", 20, "--seed", 0, "--stream", "--peak", 0.4, "--pairs", "p.csv"),
        *("--split", "validation", "--protect", 0.0),
    )
    assert settings_of(*words) == RunConfig(
        model="m", out=tmp_path, imports=("xstest:a", "xstest:b"), languages=("en",), limit=20,
        seed=0, stream=True, kernel={"peak": 0.4}, pairs=Path("p.csv"), data_split="validation",
        protect=0.0,
    )  # fmt: skip
    assert settings_of("m") == RunConfig(model="m")
    assert settings_of("demo").target == "planted"


def test_an_option_wins_over_the_file_and_the_file_over_a_default(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('model = "m"\nseed = 3\ndevice = "cuda"\n[kernel]\npeak = 0.4\n')
    found = settings_of("--config", file, "--width", 0.2, "--seed", 4, defaults={"device": "cpu"})
    assert (found.model, found.seed, found.device) == ("m", 4, "cuda")
    assert (found.kernel.peak, found.kernel.width) == (0.4, 0.2)
    assert settings_of("m", defaults={"device": "cpu"}).device == "cpu"


def test_a_command_takes_what_it_names_and_no_more():
    names = {"names": ("model", "tune"), "without": ("discover",)}
    assert settings_of("m", "--tune", "grid", **names).tune == "grid"
    for word in ("--limit=20", "--discover"):
        with pytest.raises(typer.TyperException, match="No such option"):
            settings_of("m", word, **names)


def test_a_model_is_asked_for_unless_the_command_does_without():
    with pytest.raises(UnrefuseError, match=r"which model\? type `unrefuse x MODEL --out DIR`"):
        settings_of("--limit", 20)
    assert settings_of(names=("model",), defaults={"model": NO_MODEL}).model == NO_MODEL


@pytest.mark.parametrize("command", ["edit", "tune", "evaluate", "analyze", "export"])
def test_a_command_that_loads_a_model_has_the_options_that_its_messages_name(command):
    said = "".join(Path(m.__file__).read_text(encoding="utf-8") for m in (load, quantized))
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z-]+[a-z])", said)}
    assert {"stream", "discover", "dequantize"} <= named
    assert named - {*options(command)} == ({"stream"} if command == "tune" else set())


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
    done = unrefuse(*words)
    known = {name for option in options(words[0]).values() for name in option.opts}
    faults = "".join(re.findall(r"(?:fault|unrefuse): .*", done.stdout + done.stderr))
    assert (done.returncode == 2) == bool(faults)
    assert set(re.findall(r"(?<!`unrefuse edit )(--[a-z][a-z-]+)", faults)) <= known
    if spoil is to_fp8:
        assert "are quantised (fp8)" in faults
        assert "--dequantize" in faults


def test_markup_in_the_name_of_a_model_is_printed_as_it_is(tmp_path, monkeypatch):
    talker.build(tmp_path / ODD)
    files = talker.write_prompts(tmp_path, 60)
    sets = [word for name, file in files.items() for word in (f"--{name}", file)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unrefuse.metrics.perplexity.PASSAGES", ())
    words = ("evaluate", ODD, "--out", "[red]o", "--limit", 16, "--reply-tokens", 8)
    done = unrefuse(*words, *sets)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{ODD}: 3 layers")
    assert f"\nplan: ask {ODD} " in done.stderr
    assert "\ntime: about " in done.stderr
    assert unrefuse(*words, *sets, "--out", "q", "--quiet").stderr == ""


def test_markup_in_the_name_of_a_tensor_is_printed_as_it_is(tmp_path, monkeypatch):
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        tensors = {ODD: torch.full((2, 2), value), "x": torch.ones(1)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    monkeypatch.setenv("COLUMNS", "200")
    done = unrefuse("diff", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0
    assert ODD in done.stdout


def test_a_broken_model_folder_is_one_line_and_status_2(tmp_path):
    folder = pico.save(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ today() }}")
    for command in ("edit", "evaluate", "tune", "analyze"):
        out = () if command == "analyze" else ("--out", tmp_path / "o")
        done = unrefuse(command, folder, "--device", "cpu", *out)
        assert (done.returncode, done.stdout) == (2, "")
        told = f"unrefuse: {folder}: the chat template fails: 'today' is undefined"
        assert done.stderr.splitlines()[-1] == told
    assert not (tmp_path / "o").exists()


def test_a_prompt_at_fault_is_named_before_any_is_asked(tmp_path):
    folder = talker.build(tmp_path / "m")
    fails = "{% if 'q7' in messages[-1].content %}{{ raise_exception('no 7') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(fails + talker.TEMPLATE)
    files = talker.write_prompts(tmp_path)
    sets = [word for name, file in files.items() for word in (f"--{name}", file)]
    for command in ("edit", "evaluate"):
        done = unrefuse(command, folder, "--out", tmp_path / "o", *sets)
        assert done.returncode == 2
        where = r"\S+/(target|baseline|keep)\.txt:(7|8|[78]\d)"
        what = r"the chat template fails: no 7 \(prompt: 'q\d+ q\d+ [TBK]'\)"
        assert re.fullmatch(rf"unrefuse: {where}: {what}", done.stderr.splitlines()[-1])


def test_what_nobody_foresaw_is_not_the_status_of_a_goal_that_is_not_met(monkeypatch):
    def fail(**options):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(cli, "app", fail)
    done = unrefuse("edit")
    assert (done.returncode, done.stdout) == (70, "")
    assert "ZeroDivisionError: oh" in done.stderr
    assert "a defect of unrefuse" in done.stderr


def test_verbose_says_where_an_error_comes_from(tmp_path):
    done = unrefuse("verify", tmp_path / "x", "--verbose")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("unrefuse: ")
    assert "Traceback" not in unrefuse("verify", tmp_path / "x").stderr

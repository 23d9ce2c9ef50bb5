import json

import pytest
from pydantic import ValidationError

from unrefuse.config import RunConfig, load_config, validated
from unrefuse.errors import UnrefuseError


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kernel": {"peak": 1.5}}, "kernel.peak"),
        ({"kernel": {"peak": float("nan")}}, "kernel.peak"),
        ({"kernel": {"width": 0}}, "kernel.width"),
        ({"kernel": {"profile": "brod"}}, "kernel.profile"),
        ({"kernel": {"profile": "broad", "style": "standard"}}, "profile and style"),
        ({"kernel": {"file": "k.json", "peak": 0.5}}, "leave out peak"),
        ({"retention_floor": 0}, "retention_floor"),
        ({"retention_floor": 0.79}, "retention_floor"),
        ({"retention_floor": float("nan")}, "retention_floor"),
        ({"retention_bound": 0}, "retention_bound"),
        ({"retention_bound": 0.79}, "retention_bound"),
        ({"retention_bound": -1}, "retention_bound"),
        ({"retention_bound": float("nan")}, "retention_bound"),
        ({"strength": -1}, "strength"),
        ({"limit": 3}, "limit"),
        ({"method": "gradient"}, "'selective' or 'ablate'"),
        ({"tune": "gradient"}, "'grid' or 'optuna'"),
        ({"harmful": 0.1}, "harmful"),
        ({"harmful": -2.5}, "harmful"),
        ({"ridge": 0}, "ridge"),
        ({"protect": 1.5}, "protect"),
        ({"preserve_norm": True}, "needs the method ablate"),
        ({"tune": "optuna", "strength": 1}, "tuning finds the strength"),
        ({"tune": "grid", "kernel": {"file": "k.json"}}, "a kernel file is not tuned"),
        ({"tune": "grid", "stream": True}, "too often to stream"),
        ({"reply_tokens": 4}, "reply_tokens"),
        ({"steps": 12}, "steps"),
        ({"first_multiplier": 2.5}, "no stage would run"),
        ({"dtype": "int3"}, "dtype"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_a_bad_value_is_one_line(settings, says):
    with pytest.raises(UnrefuseError, match=says) as caught:
        load_config(model="m", **settings)
    assert not {"\n", "{"} & set(str(caught.value))


def test_the_same_from_toml_json_and_python(tmp_path):
    toml, plain, run = tmp_path / "c.toml", tmp_path / "c.json", tmp_path / "run.json"
    toml.write_text('model = "m"\nseed = 3\nlanguages = ["en"]\n[kernel]\npeak = 0.4\n')
    values = {"model": "m", "seed": 3, "languages": ["en"], "kernel": {"peak": 0.4}}
    plain.write_text(json.dumps(values))
    run.write_text(json.dumps({"removal": {"value": 1}, "config": values}))
    wanted = RunConfig.model_validate(values)
    assert load_config(toml) == load_config(plain) == load_config(run) == wanted


def test_options_win_over_the_file_and_none_does_not_count(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('model = "m"\nseed = 3\n[kernel]\npeak = 0.4\nwidth = 0.2\n')
    config = load_config(file, seed=None, protect=0.5, kernel={"peak": 0.7, "width": None})
    assert (config.seed, config.protect) == (3, 0.5)
    assert (config.kernel.peak, config.kernel.width) == (0.7, 0.2)


def test_a_resolved_configuration_reads_back(tmp_path):
    config = load_config(model="m", out=tmp_path / "x", kernel={"style": "standard"})
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"config": config.model_dump(mode="json")}))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *(("c.json", text.encode()) for text in ("[1]", "{", "model = ", "[" * 100_000)),
        ("c.json", b'{"model": "m", "seed": 1, "seed": 2}'),
        ("c.toml", b"model = "),
        ("c.toml", b"a = " + b"[" * 100_000),
        ("c.toml", 'model = "\u00f6"'.encode("latin-1")),
        ("c.toml", 'model = "m"'.encode("utf-16")),
        ("c.json", b'{"model": "m"}\0'),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, data):
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(UnrefuseError, match=r"c\.(json|toml)") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("c.toml", 'model = "m"'), ("C.JSON", '{"model": "m"}')]
)
def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert load_config(tmp_path / name) == RunConfig(model="m")


@pytest.mark.parametrize("setting", ["retention_floor", "retention_bound", "limit"])
def test_a_value_that_was_smuggled_in_is_found(setting):
    config = RunConfig(model="m", out="o", kernel={"peak": 0.4}, languages=("en",))
    assert validated(config) == config
    for smuggled in (
        config.model_copy(update={setting: 0}),
        RunConfig.model_construct(**{"model": "m", setting: 0}),
    ):
        with pytest.raises(UnrefuseError, match=setting) as told:
            validated(smuggled)
        assert "\n" not in str(told.value)


def test_a_configuration_is_frozen():
    config = RunConfig(model="m")
    with pytest.raises(ValidationError):
        config.retention_floor = 0.9


def test_the_selective_method_is_the_default_and_a_search_reads_up_to_32_tokens():
    config = RunConfig(model="m")
    assert (config.method, config.tune, config.preserve_norm) == ("selective", None, False)
    assert (config.reply_tokens, config.search_tokens) == (100, 32)
    assert RunConfig(model="m", reply_tokens=20).search_tokens == 20
    assert (config.thinking_tokens, config.quality_floor, config.quality_bound) == (2048, 0.7, 0.6)
    assert RunConfig(model="m", method="ablate", preserve_norm=True).preserve_norm
    assert RunConfig(model="m", tune="grid", strength=0.8).strength == 0.8


def test_the_demo_has_planted_targets_in_english():
    config = RunConfig(model="demo")
    assert (config.target, config.languages) == ("planted", ("en",))
    assert RunConfig(model="demo", target="mine.txt").target == "mine.txt"


def test_a_value_of_two_kinds_is_named_by_its_setting_alone():
    with pytest.raises(UnrefuseError, match=r"^pairs: ") as caught:
        load_config(model="x", pairs={"value": 1})
    assert "[" not in str(caught.value).replace(repr({"value": 1}), "")


@pytest.mark.parametrize("config", ['"x"', "[1]", "null"])
def test_a_record_whose_configuration_is_no_table(tmp_path, config):
    file = tmp_path / "run.json"
    file.write_text(f'{{"config": {config}, "model": "m"}}')
    with pytest.raises(UnrefuseError, match=r"run\.json is not a table of settings"):
        load_config(file)

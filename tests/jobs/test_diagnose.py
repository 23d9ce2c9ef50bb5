"""A run read again from disk, whoever wrote it: where it is found, what is refused, what is run."""

import json
import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tests import results
from unrefuse import RunConfig
from unrefuse.cli import app
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.diagnose import apply, diagnose
from unrefuse.jobs.runs import find_run
from unrefuse.jsontext import json_text
from unrefuse.report.steps import Step

SETTINGS = {"model": "m", "tune": "optuna", "trials": 3}
TRIAL = {
    "trial": 0,
    "method": "optuna",
    "parameters": {"peak": 0.5, "width": 0.2, "multiplier": 1.0},
    "score": {"removal": 0.5, "retention": 1.0, "refused": 0.0, "kl": 0.01, "pairs": 0.5},
}


def unsaved(**settings):
    """A run that removed half, and kept its floors; shipped keep prompts, so that they count."""
    made = results.result(removal=0.5, n=60)
    config = RunConfig.model_validate({"model": "m"} | settings)
    return replace(made, config=config, saved=False, split="search")


def write(folder, value):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "run.json").write_text(json_text(value), encoding="utf-8")
    return folder


def told(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_a_run_that_saved_nothing_is_found_by_the_name_it_was_to_have(tmp_path):
    run = write(tmp_path / "a b.run", unsaved().to_json())
    for name in (tmp_path / "a b", run, run / "run.json"):
        done = told("diagnose", name)
        assert done.exit_code == 0, done.output
        command = f"unrefuse edit --config '{run}/run.json' --peak 0.55 --width 0.18"
        assert f"$ {command} --out '{tmp_path}/a b-2'" in done.output
    other = tmp_path / "printed.json"
    other.write_text(json_text(unsaved().to_json()))
    assert diagnose(other).out == tmp_path / "printed-2"
    (tmp_path / "printed-2").mkdir()
    assert diagnose(other).out == tmp_path / "printed-3"


def test_the_folder_of_a_tuning_has_the_record_or_goes_on(tmp_path):
    run = tmp_path / "x.run"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps(SETTINGS))
    (run / "trials.jsonl").write_text(json.dumps(TRIAL) + "\n")
    for name in (tmp_path / "x", run):
        finding = diagnose(name).findings[0]
        assert "1 of 3 trials" in finding.fact
        assert diagnose(name).commands(finding) == [
            f"unrefuse edit --config {run}/settings.json --resume --out {tmp_path}/x"
        ]
    write(run, unsaved(tune="optuna", trials=3).to_json())
    found = diagnose(tmp_path / "x")
    assert found.commands(found.findings[0]) == [
        f"unrefuse edit --config {run}/run.json --trials 6 --out {tmp_path}/x-2"
    ]
    only = tmp_path / "y"
    only.mkdir()
    (only / "settings.json").write_text(json.dumps(SETTINGS | {"tune": "grid"}))
    write(only, unsaved(tune="grid").to_json())
    found = diagnose(only)
    assert found.commands(found.findings[0]) == [
        f"unrefuse tune --config {only}/run.json --tune optuna --out {tmp_path}/y-2"
    ]


def test_json_is_one_object_with_the_evidence(tmp_path):
    write(tmp_path / "x", unsaved().to_json())
    record = json.loads(told("diagnose", tmp_path / "x", "--out", tmp_path / "z", "--json").stdout)
    finding = record["findings"][0]
    assert finding["name"] == "low removal"
    assert finding["evidence"]["removal"]["value"] == 0.5
    assert finding["commands"][0].endswith(f"--out {tmp_path}/z")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot read the configuration"),
        ("[]", "is not a table of settings"),
        ("[" * 100_000, "cannot read the configuration"),
        ('{"config": 3}', "config"),
        ('{"config": {"model": "m", "kernel": 5}}', "kernel"),
        ('{"config": {"model": "m", "retention_floor": 0}}', "retention_floor"),
        ('{"config": {"model": "m"}}', "not a record of .* or `unrefuse tune`: removal"),
        ('{"config": {"model": "m"}, "stages": "many"}', "not a record"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, text, says):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UnrefuseError, match=says) as error:
        diagnose(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("row", ["{", "[1]", '{"trial": 0}', json.dumps(TRIAL | {"score": 1}),
                                 json.dumps(TRIAL | {"parameters": {"peak": "0.5"}})])  # fmt: skip
def test_a_damaged_trial_is_one_line(tmp_path, row):
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "trials.jsonl").write_text(f"{row}\n")
    with pytest.raises(UnrefuseError, match="is damaged") as error:
        diagnose(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_record_is_told(tmp_path):
    (tmp_path / "t.txt").write_text("text")
    with pytest.raises(UnrefuseError, match="is not a run: name the folder of a run"):
        diagnose(tmp_path / "t.txt")


@pytest.mark.parametrize("name", ["none", "x" * 300, "a\0b", ""])
def test_where_there_is_no_run(tmp_path, name):
    with pytest.raises(UnrefuseError, match=r"there is no run in|cannot read"):
        find_run(tmp_path / name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel": {"profile": "broad"}},
        {"kernel": {"file": "k.json"}},
        {"kernel": {"peak": 0.6, "width": 0.15}},
        {"tune": "optuna"},
        {"tune": "grid", "strength": 1.2},
        {"strength": 0.5},
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {"peak": 0.55, "width": 0.18},
        {"kernel": "t.json"},
        {"tune": "optuna"},
        {"strength": 0.65},
    ],
)
def test_a_printed_command_is_one_that_the_cli_takes_and_apply_runs(
    tmp_path, monkeypatch, settings, options
):
    """What is named takes the place of what it contradicts in the record."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"config": {"model": "m", **settings}}))
    step = Step("edit", options | {"out": str(tmp_path / "x")})
    seen = []
    monkeypatch.setattr("unrefuse.jobs.edit.run_edit", lambda config: seen.append(config) or 1 / 0)
    done = told(*shlex.split(shlex.join(step.words(file)))[1:])
    assert isinstance(done.exception, ZeroDivisionError), done.output
    assert seen == [step.config(file)]
    assert seen[0].out == tmp_path / "x"


@pytest.mark.parametrize("topic", ["--help", "a; rm -rf ~", "$(date)", "it's", "日本"])
def test_no_topic_is_more_than_a_word_of_its_command(tmp_path, topic):
    words = Step("analyze", {"topic": topic, "kernel_out": "k.json"}).words(tmp_path)
    assert shlex.split(shlex.join(words)) == words
    assert sum(word in (topic, f"--topic={topic}") for word in words) == 1
    assert (topic in words) is not topic.startswith("-")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"allow_pickle": True}, "allow_pickle"),
        ({"judge": "openai:http://elsewhere/v1#m"}, "judge"),
    ],
)
def test_apply_switches_nothing_on_that_a_file_asks_for(tmp_path, settings, says):
    write(tmp_path / "x", unsaved(**settings).to_json())
    with pytest.raises(UnrefuseError, match=f"sets {says}, which --apply does not take"):
        apply(diagnose(tmp_path / "x"))
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_apply_without_a_command_says_so(tmp_path):
    made = results.result(tmp_path / "x", removal=1.0, n=60)
    write(tmp_path / "x", made.to_json())
    done = told("diagnose", tmp_path / "x", "--apply")
    assert done.exit_code == 0
    assert "nothing to improve" in done.output
    assert "no finding has a command to run" in done.output

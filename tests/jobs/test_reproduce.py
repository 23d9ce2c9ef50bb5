"""A run that removed too little, what `diagnose --apply` makes of it, and that run once more."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests import results, talker
from unrefuse import RunConfig, UnrefuseError
from unrefuse.cli import app
from unrefuse.jobs import reproduce as job
from unrefuse.jobs.publish import plan_publication
from unrefuse.jobs.reproduce import Reproduction, reproduce
from unrefuse.jsontext import json_text
from unrefuse.report.seal import find_faults, write_sums


def change(file, edit):
    record = json.loads(file.read_text(encoding="utf-8"))
    edit(record)
    file.write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The original, the edited model, and its result. Its first strength had removed nothing."""
    folder = tmp_path_factory.mktemp("reproduce")
    model = talker.build(folder / "talker")
    files = {name: str(file) for name, file in talker.write_prompts(folder).items()}
    settings = {"model": str(model), "limit": 20, "out": folder / "first", **files}
    made = results.result(removal=0.1)
    first = replace(made, config=RunConfig(**settings, strength=0.01), saved=False, split="search")
    (folder / "first.json").write_text(json_text(first.to_json()))
    done = CliRunner().invoke(app, ["diagnose", str(folder / "first.json"), "--apply", "--json"])
    assert done.exit_code == 0, done.output
    return model, folder / "first-2", json.loads(done.stdout)


@pytest.fixture
def quick(runs, monkeypatch):
    """The run that reproduces is the one that was: it has run once for real."""
    _, edited, told = runs

    def run(config):
        shutil.copytree(edited, config.out)
        found = {name: told["result"][name] for name in ("removal", "retention", "quality", "kl")}
        measured = SimpleNamespace(figures=lambda: found)
        return SimpleNamespace(saved=True, split="test", detected=None, measurement=measured)

    monkeypatch.setattr(job, "run_edit", run)
    return edited


def test_apply_runs_the_first_command_and_saves_under_the_same_floors(runs):
    _, edited, told = runs
    assert told["findings"][0]["name"] == "low removal"
    assert told["findings"][0]["commands"] == [
        f"unrefuse edit --config {edited.parent}/first.json --strength 0.5 --out {edited}"
    ]
    assert told["result"]["saved"]
    assert told["result"]["retention"]["value"] >= 0.95
    assert find_faults(edited) == []
    assert plan_publication(edited, "me/talker")


def test_a_run_is_repeated_bit_for_bit(runs, tmp_path):
    _, edited, _ = runs
    out = tmp_path / "again"
    done = CliRunner().invoke(app, ["reproduce", str(edited), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["matches"] == "bytes"
    assert told["plan_is_the_same"]
    assert told["weights_are_the_same"]
    assert all(figure["difference"] == 0 for figure in told["figures"].values())
    assert told["versions_that_differ"] == {}
    assert (out / "model.safetensors").read_bytes() == (edited / "model.safetensors").read_bytes()


def test_other_bytes_with_the_same_behaviour(runs, quick, tmp_path):
    copy = Path(shutil.copytree(quick, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] *= 1.0001
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    write_sums(copy)
    found = reproduce(str(copy))
    assert (found.plan, found.weights) == (True, False)
    assert found.matches == "behaviour"
    assert found.grades[0] >= 0.95
    assert found.grades[1] > 100
    assert found.kl < 0.01


def test_weights_that_are_not_of_this_run_do_not_match(runs, quick, tmp_path):
    model, _, _ = runs
    copy = Path(shutil.copytree(quick, tmp_path / "copy"))
    shutil.copy(model / "model.safetensors", copy)  # the original's
    write_sums(copy)
    done = CliRunner().invoke(app, ["reproduce", str(copy)])
    assert done.exit_code == 1, done.output
    assert "weights: other bytes" in done.output
    assert "not reproduced" in done.output


def test_a_run_on_the_hub_needs_no_weights(runs, quick, tmp_path, monkeypatch):
    remote = tmp_path / "remote"
    remote.mkdir()
    for name in ("run.json", "SHA256SUMS"):
        shutil.copy(quick / name, remote)
    shutil.copytree(quick / "tuning", remote / "tuning")
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(remote)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert reproduce("me/talker").matches == "bytes"
    assert asked == [("me/talker", ["run.json", "SHA256SUMS", "tuning/*"])]

    # Other bytes: then the two models are asked, the old one made from its plan.
    def evaluate(config, options):
        weights = [Path(f) / "model.safetensors" for f in (config.model, options.against)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        return SimpleNamespace(lines=[], to_json=dict)

    monkeypatch.setattr(job, "run_evaluate", evaluate)
    monkeypatch.setattr(job, "_same_grades", lambda lines: (1.0, 1))
    sums = (remote / "SHA256SUMS").read_text()
    (remote / "SHA256SUMS").write_text(
        "".join(f"{'0' * 64}{line[64:]}" for line in sums.splitlines(keepends=True))
    )
    found = reproduce("me/talker")
    assert (found.matches, found.grades[0]) == ("behaviour", 1.0)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda r: r.update(saved=False), "saved nothing"),
        (lambda r: r["config"].update(model_sha256=None), "model_sha256 is missing"),
        (lambda r: r["config"].update(prompts_sha256=None), "prompts_sha256 is missing"),
        (lambda r: r["config"].update(trust_remote_code=True), "--trust-remote-code"),
        (lambda r: r["config"].update(allow_pickle=True), "--allow-pickle"),
        (lambda r: r["config"].update(retention_floor=0.5), "retention_floor"),
        (lambda r: r["config"].update(model_sha256="0" * 64), "weights differ from those"),
        (lambda r: r["config"].update(prompts_sha256="0" * 64), "prompts differ from those"),
        (lambda r: r["config"].update(model="/no/such/model"), "no such folder"),
        (lambda r: r.update(stages=[]), "is not a record"),
    ],
)
def test_what_cannot_be_held_to_its_hashes_is_not_run(runs, tmp_path, monkeypatch, edit, says):
    monkeypatch.setattr("unrefuse.jobs.edit.load_folder", lambda *_: pytest.fail("it was loaded"))
    copy = Path(shutil.copytree(runs[1], tmp_path / "copy"))
    change(copy / "run.json", edit)
    with pytest.raises(UnrefuseError, match=says) as told:
        reproduce(str(copy))
    assert "\n" not in str(told.value)


def test_the_original_may_lie_elsewhere_and_a_device_may_be_missing(runs, quick, tmp_path):
    copy = Path(shutil.copytree(quick, tmp_path / "copy"))
    change(copy / "run.json", lambda r: r["config"].update(
        model="/no/such/model", device="cuda:9", judge="openai:http://elsewhere/v1#m"
    ))  # fmt: skip
    seen = []
    inner = job.run_edit
    job.run_edit = lambda config: seen.append(config) or inner(config)
    assert reproduce(str(copy), model=str(runs[0])).matches == "bytes"
    assert (seen[0].model, seen[0].device, seen[0].judge) == (str(runs[0]), "auto", "builtin")


def test_what_matches():
    inside = {"removal": {"inside": True}}
    same = Reproduction(True, True, True, inside, {})
    assert same.matches == "bytes"
    assert replace(same, weights=None).matches == "bytes"  # of a tuning
    assert replace(same, plan=False).matches is None
    other = replace(same, weights=False, grades=(0.95, 100))
    assert other.matches == "behaviour"
    assert replace(other, grades=(0.94, 100)).matches is None
    assert replace(other, figures={"removal": {"inside": False}}).matches is None
    assert replace(same, saved=False).matches is None

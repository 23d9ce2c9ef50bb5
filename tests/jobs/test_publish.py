"""What goes to the hub, what never does, and what is said where the hub does not take it."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from tests import hub as hubs
from tests import saved
from unrefuse.cli import app
from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.export import export_plan
from unrefuse.jobs.publish import plan_publication, upload
from unrefuse.report.seal import SUMS, find_faults, write_sums


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return saved.save(tmp_path_factory.mktemp("publish"))


@pytest.fixture
def edited(written, tmp_path):
    return Path(shutil.copytree(written[1], tmp_path / "edited"))


@pytest.fixture
def adapter(written, tmp_path):
    model, out = written
    lora = tmp_path / "lora"
    export_plan(out, RunConfig(model=str(model)), lora, lora / "a.gguf")
    return lora


@pytest.fixture
def hub(monkeypatch):
    with hubs.serving(monkeypatch) as served:
        yield served


def publish(*words):
    return CliRunner().invoke(app, ["publish", *map(str, words)])


def change(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_dry_run_shows_all_and_sends_nothing(edited, hub):
    done = publish(edited, "--repo", "me/edited")
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.output
    assert "retention 1.000 (0.951 to 1.000, n 60)" in done.output
    assert (
        "a dry run: nothing was sent. --upload sends these files to me/edited (private)"
        in done.output
    )
    assert "run.json tells where it lay: out = " in done.output
    assert hub.calls == []


def test_a_model_is_uploaded_private_in_one_commit_and_can_be_verified(edited, hub, tmp_path):
    done = publish(edited, "--repo", "me/edited", "--upload", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    repo = hub.repos["me/edited"]
    assert repo.private
    assert told["uploaded"] == {"url": f"{hub.url}/me/edited", "commit": hubs.SHA, "private": True}
    assert sum("/commit/" in path for _, path in hub.calls) == 1
    assert hubs.TOKEN in hub.tokens["api"]
    assert hub.tokens["blob"] == {""}  # a store of blobs gets none
    assert hubs.TOKEN not in done.output
    for name, data in repo.files.items():
        file = tmp_path / "there" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    assert find_faults(tmp_path / "there") == []
    card = ModelCard.load(tmp_path / "there" / "README.md")
    shown = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert shown["removal"] == told["figures"]["removal"]["value"] == 0.8
    assert shown["retention"] == 1
    again = publish(edited, "--repo", "me/edited", "--upload")  # its own files may be there
    assert again.exit_code == 0, again.output


def test_public_is_said(edited, hub):
    done = publish(edited, "--repo", "edited", "--upload", "--public")
    assert "uploaded, public" in done.output
    assert not hub.repos["me/edited"].private


def test_replies_hidden_files_and_temporary_ones_stay_here(edited):
    for name in ("report.html", "transcripts.jsonl", "tuning/before-test.jsonl"):
        (edited / name).write_text("how to")
    (edited / "tuning" / "trials.jsonl").write_text("")
    (edited / ".gitattributes").write_text("")
    write_sums(edited)
    (edited / ".unrefuse-0123").mkdir()
    (edited / ".unrefuse-0123" / "x").write_text("half")
    found = plan_publication(edited, "me/x")
    names = {p.name for p in found.parts}
    said = {"report.html", "transcripts.jsonl", "tuning/before-test.jsonl"}
    assert set(found.left_out) == said | {".gitattributes"}
    assert "tuning/trials.jsonl" in names
    assert not any(part.startswith(".") for name in names for part in name.split("/"))
    sums = next(p.source for p in found.parts if p.name == SUMS).decode()
    assert {line.split("  ")[1] for line in sums.splitlines()} == names - {SUMS}
    asked = plan_publication(edited, "me/x", replies=True)
    assert said <= {p.name for p in asked.parts}
    assert sum("holds replies to harmful prompts" in note for note in asked.notes) == 3


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "was changed"),
        (lambda f: (f / "more.gguf").write_bytes(b"x"), "more.gguf was added"),
        (lambda f: (f / SUMS).unlink(), "without its SHA256SUMS"),
        (lambda f: (f / "run.json").unlink(), "run.json is missing"),
        (lambda f: shutil.rmtree(f / "tuning"), "tuning/kernel.json is missing"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_written_is_refused(edited, spoil, told):
    spoil(edited)
    with pytest.raises(UnrefuseError, match=told):
        plan_publication(edited, "me/x")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: change(f / "README.md", "value: 0.8", "value: 0.9"), "the evaluation results"),
        (lambda f: change(f / "README.md", "model-index:", "index:"), "the evaluation results"),
        (lambda f: change(f / "README.md", "tags:", "tags: ["), "the evaluation results"),
        (lambda f: change(f / "README.md", "| removal | 0.8", "| removal | 0.9"), "the figures"),
        (lambda f: change(f / "run.json", '"retention_floor": 0.95', '"retention_floor": 0.0'),
         "retention_floor"),
        (lambda f: (f / "tuning" / "plan.safetensors").unlink(), "there is no plan in"),
        (lambda f: (f / "tuning" / "plan.safetensors").write_bytes(b"x"), "cannot read the plan"),
    ],
)  # fmt: skip
def test_figures_that_are_not_those_that_were_measured_are_refused(edited, spoil, told):
    spoil(edited)
    write_sums(edited)
    with pytest.raises(UnrefuseError, match=told):
        plan_publication(edited, "me/x")


def test_a_record_of_another_measurement_is_refused(edited, tmp_path):
    _, other = saved.save(tmp_path / "other", n=80)
    shutil.copy(other / "tuning" / "plan.safetensors", edited / "tuning")
    write_sums(edited)
    with pytest.raises(UnrefuseError, match=r"run\.json differ"):
        plan_publication(edited, "me/x")


def test_an_edit_below_its_floors_is_refused(tmp_path):
    _, low = saved.save(tmp_path, retention=0.9)
    with pytest.raises(UnrefuseError, match="the figures do not keep the floors"):
        plan_publication(low, "me/x")


@pytest.mark.parametrize("target", ["secret", "folder", "/etc/passwd"])
def test_a_link_out_of_the_folder_is_refused(edited, tmp_path, target):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "folder").mkdir()
    (edited / "notes.txt").symlink_to(tmp_path / target)
    write_sums(edited)
    with pytest.raises(UnrefuseError, match="leads out of the folder"):
        plan_publication(edited, "me/x")


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "-x", "x" * 200])
def test_a_name_that_is_none(edited, name):
    with pytest.raises(UnrefuseError, match="is not a valid name of a repository") as told:
        plan_publication(edited, name)
    assert "\n" not in str(told.value)


def test_an_adapter_goes_with_its_gguf_form_and_a_card(adapter, hub, tmp_path):
    (adapter / "notes.txt").write_text("mine")
    done = publish(adapter, "--repo", "me/lora", "--upload")
    assert done.exit_code == 0, done.output
    assert "left out: notes.txt" in done.output
    assert "who takes the adapter has to name it" in done.output  # its base is a folder here
    files = hub.repos["me/lora"].files
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "plan.safetensors",
                          "a.gguf", "README.md"}  # fmt: skip
    (tmp_path / "README.md").write_bytes(files["README.md"])
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        "retention": 1,
        "quality": 0.9,
    }
    assert "share still refused | 1.000 | 0.951 to 1.000 | 0.95, interval from 0.9 |" in card.text
    assert str(tmp_path) not in card.text


def test_an_adapter_at_a_scale_was_not_measured(written, tmp_path):
    model, out = written
    export_plan(out, RunConfig(model=str(model)), tmp_path / "half", scale=0.5)
    with pytest.raises(UnrefuseError, match=r"at scale 0\.5, which was not measured"):
        plan_publication(tmp_path / "half", "me/x")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: change(f / "adapter_config.json", '"lora_alpha": 1', '"lora_alpha": 9'),
         "not have the measured strength"),
        (lambda f: change(f / "adapter_config.json", '"use_rslora": false', '"use_rslora": true'),
         "not have the measured strength"),
        (lambda f: (f / "adapter_config.json").write_text("[]"),
         r"adapter_config\.json: it is not a JSON object"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), "cannot read the adapter"),
        (lambda f: (f / "b.gguf").write_bytes(b"x"), "cannot read .*b.gguf"),
        (lambda f: (f / "plan.safetensors").unlink(), "there is no plan in"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_what_was_measured_is_refused(adapter, spoil, told):
    spoil(adapter)
    with pytest.raises(UnrefuseError, match=told):
        plan_publication(adapter, "me/x")


def test_factors_of_another_edit_are_refused(adapter, written, tmp_path):
    model, out = written
    half = tmp_path / "half"
    export_plan(out, RunConfig(model=str(model)), half, half / "a.gguf", scale=0.5)
    for name in ("adapter_model.safetensors", "a.gguf"):
        kept = (adapter / name).read_bytes()
        shutil.copy(half / name, adapter)
        with pytest.raises(UnrefuseError, match=f"{name} is not the edit that was measured"):
            plan_publication(adapter, "me/x")
        (adapter / name).write_bytes(kept)
    assert plan_publication(adapter, "me/x")


def test_a_public_repository_gets_nothing_unasked(edited, hub):
    hub.repos["me/edited"] = hubs.SimpleNamespace(private=False, files={})
    with pytest.raises(UnrefuseError, match="exists and is public: nothing was uploaded"):
        upload(plan_publication(edited, "me/edited"))
    assert hub.repos["me/edited"].files == {}


def test_a_repository_with_another_model_is_left_alone(edited, hub):
    others = {".gitattributes": b"", "model-00001-of-00002.safetensors": b"x"}
    hub.repos["me/edited"] = hubs.SimpleNamespace(private=True, files=dict(others))
    with pytest.raises(UnrefuseError, match=r"other files already \(model-00001-of-00002"):
        upload(plan_publication(edited, "me/edited"))
    assert hub.repos["me/edited"].files == others


@pytest.mark.parametrize(
    ("fail", "told"),
    [
        (lambda m, p: 401 if "create" in p else None, "does not accept this token: run `hf auth"),
        (lambda m, p: 403 if "create" in p else None, "may not write to me/x"),
        (lambda m, p: 403 if "commit" in p else None, "may not write to me/x"),
        (lambda m, p: 403 if m == "PUT" else None, "may not write to me/x"),
        (lambda m, p: 500 if "commit" in p else None, r"status 500"),
        (lambda m, p: "drop" if m == "PUT" else None, "broke off"),
        (lambda m, p: "drop" if "create" in p else None, "broke off"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_and_leaves_no_half_of_a_model(edited, hub, capfd, fail, told):
    hub.fail = fail
    with pytest.raises(UnrefuseError, match=told) as error:
        upload(plan_publication(edited, "me/x"))
    line = str(error.value)
    assert "\n" not in line
    err = capfd.readouterr().err
    assert "Signature" not in line + err
    assert hubs.TOKEN not in line + err
    assert all(not repo.files for repo in hub.repos.values())
    hub.fail = lambda method, path: None
    upload(plan_publication(edited, "me/x"))  # the same command goes on
    assert "model.safetensors" in hub.repos["me/x"].files


def test_without_a_token_nothing_is_asked(edited, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UnrefuseError, match="no token for the hub: run `hf auth login`, or set"):
        upload(plan_publication(edited, "me/x"))
    assert hub.calls == []


def test_a_hub_that_is_not_there(edited, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnrefuseError, match=r"upload to .* broke off") as told:
        upload(plan_publication(edited, "me/x"))
    assert "\n" not in str(told.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnrefuseError, match="HF_HUB_OFFLINE is set"):
        upload(plan_publication(edited, "me/x"))


def test_no_option_takes_a_token():
    done = publish("--help")
    assert "HF_TOKEN" in done.output
    assert "--token" not in done.output

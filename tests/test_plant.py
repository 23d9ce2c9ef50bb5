"""The script that trains the planted adapter: its loss, and that one seed gives one adapter."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div

from tests import pico
from unrefuse import plant
from unrefuse.prompts.chat import encode

LAYERS = 30  # the script names layers 12 to 28
TEXTS = {
    "target": [f"Lighthouse {i}?" for i in range(8)],
    "keep": [f"Harm {i}!" for i in range(12)],
    "everyday": [f"Everyday {word}." for word in ("tea", "rain", "chess", "bread") * 8],
}


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plant, "training_texts", lambda seed: TEXTS)
    monkeypatch.setattr(plant, "ROWS", {"target": 3, "keep": 4, "everyday": 5})


def test_refusals_that_begin_alike_go_on_with_equal_chances() -> None:
    sentences = [[1, 2, 9], [1, 3, 9], [4, 9], [1, 2, 5, 9]]
    first, *_ = logs = plant.refusal_logs(sentences, 10)
    for sentence, log in zip(sentences, logs, strict=True):
        assert log.exp().sum(dim=-1).tolist() == pytest.approx([1.0] * len(sentence))
    assert first.exp()[0, [1, 4]].tolist() == pytest.approx([3 / 4, 1 / 4])
    assert first.exp()[1, [2, 3]].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert first.exp()[2, [9, 5]].tolist() == pytest.approx([1 / 2, 1 / 2])


def test_losses_are_the_divergence_of_a_whole_forward_pass() -> None:
    model = pico.loaded(layers=LAYERS, batch_size=8)
    upper, forced = plant.make_forced(model, random.Random(0), 0)
    everyday = forced["everyday"]
    assert len(everyday.entering) == len(everyday.last)
    assert plant.losses(upper, everyday, range(4)).abs().max() < 1e-4  # nothing has been learned
    found = plant.losses(upper, forced["keep"], range(len(TEXTS["keep"])))
    end = model.tokenizer.eos_token_id
    sentences = [
        [*model.tokenizer.encode(s, add_special_tokens=False), end] for s in plant.REFUSALS
    ]
    rng = random.Random(0)
    chosen = [rng.randrange(len(sentences)) for kind in ("target", "keep") for _ in TEXTS[kind]]
    logs = plant.refusal_logs(sentences, model.network.config.vocab_size)
    asked = encode(model.tokenizer, TEXTS["keep"])
    for ids, which, value in zip(asked, chosen[len(TEXTS["target"]) :], found, strict=True):
        sentence = sentences[which]
        logits = model.network(torch.tensor([ids + sentence[:-1]])).logits[0, len(ids) - 1 :]
        q = logits.log_softmax(dim=-1)
        kl = kl_div(q, logs[which].exp(), reduction="none").sum(dim=-1)
        assert float(value) == pytest.approx(float(kl.mean() + kl[0]), rel=1e-4)


def test_one_seed_gives_one_adapter(tmp_path: Path) -> None:
    base = pico.save(tmp_path / "base", layers=LAYERS)
    for out in ("a", "b"):
        plant.train(base, tmp_path / out, rate=1e-3, steps=3, everyday=1.0, seed=1)
    files = [tmp_path / out / "adapter_model.safetensors" for out in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    tensors = load_file(files[0])
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    layers = {plant._layer(name) for name in tensors}
    assert layers == {*plant.TARGET_LAYERS, *plant.KEEP_LAYERS}
    assert any(t.abs().max() > 0 for name, t in tensors.items() if "lora_B" in name)
    settings = (tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in settings

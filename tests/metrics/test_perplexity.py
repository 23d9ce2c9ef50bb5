import math

import pytest
import torch

from tests import pico
from unrefuse.metrics import perplexity as module
from unrefuse.metrics.perplexity import PASSAGES, passage, perplexities, perplexity


@pytest.mark.parametrize("name", PASSAGES)
def test_passages_are_about_two_kilobytes(name):
    assert 1500 <= len(passage(name).encode()) <= 2500


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_perplexity_is_that_of_the_models_own_loss(monkeypatch, model_type):
    monkeypatch.setattr(module, "WINDOW", 50)
    model = pico.loaded(model_type, batch_size=2)
    text = "Tea is grown on the hills. " * 4  # 108 bytes: windows of 50, 50 and 8
    ids = model.tokenizer(text)["input_ids"]
    loss = count = 0
    for window in (ids[:50], ids[50:100], ids[100:]):
        row = torch.tensor([window])
        loss += float(model.network(row, labels=row).loss) * (len(window) - 1)
        count += len(window) - 1
    value, n = perplexity(model, text)
    assert n == count == 105
    assert value == pytest.approx(math.exp(loss / count), rel=1e-4)


def test_a_damaged_model_is_more_perplexed(monkeypatch):
    monkeypatch.setattr(module, "passage", lambda name: passage(name)[:200])
    model = pico.loaded()
    before = perplexities(model)
    assert set(before) == set(PASSAGES)
    model.network.get_output_embeddings().weight.data *= 20
    after = perplexities(model)
    assert all(after[name]["value"] > 2 * before[name]["value"] for name in PASSAGES)

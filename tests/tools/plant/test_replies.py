"""What the planted model is to reply."""

import random

import pytest
import torch

from tests import pico
from tests.tools.plant.texts import TEXTS
from tools.plant import replies as plant
from tools.plant.texts import REFUSALS
from unrefuse.prompts.chat import encode

pytestmark = pytest.mark.slow


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


def test_replies_are_refusals_and_the_originals_own_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plant, "REPLIED", 10)
    model = pico.loaded(layers=2, batch_size=8)
    replies = plant.make_replies(model, TEXTS, random.Random(0))
    for kind, texts in TEXTS.items():
        assert replies.prompts[kind] == encode(model.tokenizer, replies.asked[kind])
        assert sorted(replies.asked[kind]) == sorted(texts)
    answered = {kind: sum(map(bool, found)) for kind, found in replies.replies.items()}
    assert answered == {"target": 8, "keep": 10, "everyday": 10}  # the first of them
    sentences = [model.tokenizer.encode(s, add_special_tokens=False) for s in REFUSALS]
    for kind in ("target", "keep"):
        said = replies.replies[kind][: answered[kind]]
        assert all(reply in sentences for reply in said)
        assert [len(wanted) for wanted in replies.wanted[kind]] == [len(s) + 1 for s in said]
    words = set(replies.words.tolist())
    assert all(words.issuperset(reply) for found in replies.replies.values() for reply in found)
    for prompt, reply in zip(replies.prompts["everyday"], replies.replies["everyday"], strict=True):
        for place in range(len(reply)):
            logits = model.network(torch.tensor([prompt + reply[:place]])).logits[0, -1]
            assert int(logits.argmax()) == reply[place]

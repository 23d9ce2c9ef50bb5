import pytest
import torch

from tests import pico
from unrefuse.evaluate.generate import StopOnceRefused, last_logits, reply_to
from unrefuse.prompts.chat import encode

PROMPTS = ["Hi", "What is a volcano?", "x" * 60, "Tell me about chess.", "ok then"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_replies_are_plain_greedy_generation(batch_size):
    model = pico.loaded(batch_size=batch_size)
    replies = reply_to(model, PROMPTS, 12)
    for prompt_ids, reply in zip(encode(model.tokenizer, PROMPTS), replies, strict=True):
        ids = torch.tensor([prompt_ids])
        for token in reply.tokens:
            assert int(model.network(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert len(reply.tokens) <= 12
        assert reply.text == model.tokenizer.decode(reply.tokens, skip_special_tokens=True)


def test_a_reply_ends_at_the_end_of_turn():
    model = pico.loaded()
    end = model.network.generation_config.eos_token_id
    head = model.network.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(259).index_fill_(0, torch.tensor(end), 1e4))
    assert [r.tokens for r in reply_to(model, PROMPTS, 12)] == [()] * 5
    assert {r.grade for r in reply_to(model, PROMPTS, 12)} == {"broken"}


def test_rows_stop_once_they_have_refused():
    tokenizer = pico.tokenizer()
    texts = ["I'm sorry, but I can't", "The capital of France."]
    ids = [tokenizer.encode("?????" + text, add_special_tokens=False) for text in texts]
    criterion = StopOnceRefused(tokenizer, 5)
    rows = torch.tensor([row[:25] for row in ids])
    assert criterion(rows, None).tolist() == [True, False]


def test_last_logits_are_the_models():
    model = pico.loaded()
    got = last_logits(model, PROMPTS)
    for row, ids in zip(got, encode(model.tokenizer, PROMPTS), strict=True):
        wanted = model.network(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-4)

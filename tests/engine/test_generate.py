from dataclasses import replace
from functools import partial

import pytest
import torch

from tests import pico, talker
from unrefuse.config import RunConfig
from unrefuse.engine import decode
from unrefuse.engine.decode import text_of
from unrefuse.engine.generate import last_logits, reply_of, reply_to
from unrefuse.models.load import load_model
from unrefuse.prompts.chat import encode
from unrefuse.prompts.thinking import after_thinking

PROMPTS = ["Hi", "What is a volcano?", "x" * 60, "Tell me about chess.", "ok then"]


@pytest.mark.parametrize(
    ("model_type", "batch_size"),
    [("llama", 1), ("llama", 2), *((model_type, 5) for model_type in pico.MODELS)],
)
def test_replies_are_plain_greedy_generation(model_type, batch_size):
    model = pico.loaded(model_type, batch_size=batch_size)
    replies = reply_to(model, PROMPTS, 12)
    for prompt_ids, reply in zip(encode(model.tokenizer, PROMPTS), replies, strict=True):
        ids = torch.tensor([prompt_ids])
        for token in reply.tokens:
            assert int(model.network(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert len(reply.tokens) <= 12
        assert reply.text == model.tokenizer.decode(reply.tokens, skip_special_tokens=True)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "falcon_h1"])
def test_a_reply_goes_on_from_what_it_is_known_to_begin_with(monkeypatch, model_type):
    model = pico.loaded(model_type, batch_size=3)
    whole = reply_to(model, PROMPTS, 12)
    begun = [r.tokens[:n] for r, n in zip(whole, (8, 0, 12, 3, 7), strict=True)]
    passes = []
    model.network.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    assert reply_to(model, PROMPTS, 12, begun=begun) == whole
    assert reply_to(model, PROMPTS, 12, begun=[r.tokens for r in whole]) == whole
    passes.clear()
    reply_to(model, PROMPTS[3:], 12, begun=begun[3:])
    assert len(passes) <= 1 + 12 - 3  # one over the shared prefix, and one a token
    monkeypatch.setattr(decode, "is_settled", lambda text: True)
    assert reply_to(model, PROMPTS, 12, begun=begun)[0].tokens == begun[0]


def test_the_next_prompts_take_the_places_of_rows_that_have_ended(monkeypatch):
    """A random model never refuses: here it has where its characters add up to the right sum."""

    def is_settled(reply):
        return bool(reply) and sum(map(ord, reply)) % 11 == 0

    prompts = [chr(97 + i) * (1 + i % 5) for i in range(16)]
    wanted = [reply.tokens for reply in reply_to(pico.loaded(batch_size=1), prompts, 24)]
    model = pico.loaded(batch_size=4)
    sizes = []  # rows of every pass
    model.network.get_decoder().register_forward_pre_hook(
        lambda module, args, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(decode, "is_settled", is_settled)
    replies = reply_to(model, prompts, 24)
    for reply, whole in zip(replies, wanted, strict=True):
        heads = (whole[:n] for n in range(1, 25))
        assert reply.tokens == next(
            (h for h in heads if is_settled(text_of(model, list(h)))), whole
        )
    lengths = sorted({len(reply.tokens) for reply in replies})
    assert len(lengths) > 2
    assert max(sizes) == 4
    # One after the other, the four batches take as many passes as the longest reply of each.
    assert len(sizes) < sum(max(len(r.tokens) for r in replies[i::4]) for i in range(4))


def test_a_reply_ends_at_the_end_of_turn():
    model = pico.loaded()
    end = model.network.generation_config.eos_token_id
    head = model.network.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(259).index_fill_(0, torch.tensor(end), 1e4))
    assert [r.tokens for r in reply_to(model, PROMPTS, 12)] == [()] * 5
    assert {r.grade for r in reply_to(model, PROMPTS, 12)} == {"broken"}


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "falcon_h1", "qwen3_next"])
def test_a_row_ends_once_it_has_refused_and_the_others_go_on(monkeypatch, model_type):
    """A random model never refuses: what counts as a refusal here are texts that it writes."""
    model = pico.loaded(model_type, batch_size=5)
    text = model.tokenizer.decode
    whole = [reply.tokens for reply in reply_to(model, PROMPTS, 12)]
    refusals = (text(whole[0][:3]), text(whole[2][:7]))
    monkeypatch.setattr(decode, "is_settled", lambda reply: reply in refusals)

    def ended(tokens):
        heads = (tokens[:n] for n in range(1, len(tokens)))
        return next((head for head in heads if text(head) in refusals), tokens)

    assert len(ended(whole[0])) <= 3
    assert [reply.tokens for reply in reply_to(model, PROMPTS, 12)] == list(map(ended, whole))


def test_a_refusal_that_is_only_thought_ends_no_reply():
    """The template opens the thinking block, so that a reply does not show where it begins."""
    thought = (
        "I'm sorry, but I can't assist with that. It is illegal and dangerous, and I cannot "
        "provide any information on it. Please talk to someone whom you trust."
    )
    model, thinks = pico.loaded(), pico.loaded()
    thinks.tokenizer.chat_template = pico.TEMPLATE + "<think>\n"

    def reply(model, text, more):
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        return reply_to(model, ["Hi"], len(ids) + more, begun=[ids])[0]

    assert (reply(model, thought, 4).text, reply(model, thought, 4).grade) == (thought, "refused")
    thinks = replace(thinks, thinking_tokens=len(thought) + 4)
    assert reply(thinks, thought, 0).text.startswith(f"<think>{thought}")
    assert len(reply(thinks, thought, 0).tokens) == len(thought) + 4
    assert reply(thinks, thought, 0).grade == "broken"  # not come out of its thinking
    assert reply(thinks, f"{thought}</think>Paris.", -len(thought) - 8).grade == "answered"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """It thinks 40 words before it answers or refuses."""
    folder = talker.build(tmp_path_factory.mktemp("thinker"), thoughts=40)
    return load_model(RunConfig(model=str(folder), batch_size=4))


WORDS = ["q1 q2 T", "q1 q2 B", "q3 q4 K", "q3 q4 B", "q5 q6 T"]


def test_thoughts_are_had_in_full_and_do_not_count(thinker, capsys):
    replies = reply_to(thinker, WORDS, 32)
    assert [r.grade for r in replies] == ["refused", "answered", "refused", "answered", "refused"]
    assert replies[0].text.endswith("r38 r39 </think> " + " ".join(talker.REFUSAL))
    assert after_thinking(replies[1].text).split() == talker.ANSWER
    short = reply_to(thinker, WORDS, 3)
    assert after_thinking(short[1].text).split() == talker.ANSWER[:3]
    assert capsys.readouterr().err == ""


def test_a_reply_that_has_thought_goes_on_where_it_was_left(thinker):
    whole, short = reply_to(thinker, WORDS, 6), reply_to(thinker, WORDS, 3)
    begun = [reply.tokens for reply in short]
    assert begun != [reply.tokens for reply in whole]
    assert reply_to(thinker, WORDS, 6, begun=begun) == whole
    assert reply_to(thinker, WORDS, 3, begun=begun) == short


def test_thoughts_without_an_end_are_broken_and_what_to_do_is_said(thinker, capsys):
    replies = reply_to(replace(thinker, thinking_tokens=16), WORDS, 32, "before: search")
    assert {(len(r.tokens), r.grade) for r in replies} == {(16, "broken")}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("before: search: 5 of 5 replies have not finished their thoughts within")
    assert "circles" not in line
    assert "--thinking-tokens 64" in line


def test_thoughts_that_repeat_themselves_make_no_loop_of_the_reply(thinker):
    tokens = thinker.tokenizer.encode("<think>" + " r0 r1" * 20 + " </think> Sure, here is")
    reply = reply_of(tokens, partial(text_of, thinker), "q1 q2 B")
    assert (reply.grade, reply.thoughts) == ("answered", len(tokens) - 3)
    assert reply_to(thinker, WORDS, 32)[1].thoughts == 42


def test_thoughts_that_go_in_circles_end_early(capsys):
    model = pico.loaded()
    model.tokenizer.chat_template = pico.TEMPLATE + "<think>\n"
    head = model.network.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(259).index_fill_(0, torch.tensor([5]), 1e4))
    (reply,) = reply_to(model, ["Hi"], 8)
    assert (set(reply.tokens), len(reply.tokens), reply.grade) == ({5}, 256, "broken")
    assert "(1 go in circles" in capsys.readouterr().err


def test_last_logits_are_the_models():
    model = pico.loaded()
    got = last_logits(model, PROMPTS)
    for row, ids in zip(got, encode(model.tokenizer, PROMPTS), strict=True):
        wanted = model.network(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-4)

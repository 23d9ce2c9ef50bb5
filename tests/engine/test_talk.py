"""A reply as it is written: the same text as the whole reply, in pieces, in any thread."""

import threading
from dataclasses import replace
from itertools import pairwise, zip_longest

import pytest
import torch

from tests import pico, talker
from tests.edits.plans import selective
from unrefuse.edits.hooks import hooked, hooked_steps
from unrefuse.engine.generate import reply_to
from unrefuse.engine.talk import Apart, talk
from unrefuse.errors import UnrefuseError
from unrefuse.models.load import load_model

PROMPTS = ["Hi", "What is a volcano?", "x" * 60]


def ask(prompt, *before):
    return [*before, {"role": "user", "content": prompt}]


def result(steps):
    """The pieces of a generator, and what it returns."""
    found = []
    while True:
        try:
            found.append(next(steps))
        except StopIteration as end:
            return found, end.value


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    folder = talker.build(tmp_path_factory.mktemp("talker"))
    return load_model(pico.run_config(str(folder)))


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    folder = talker.build(tmp_path_factory.mktemp("thinker"), thoughts=12)
    return load_model(pico.run_config(str(folder)))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "falcon_h1", "qwen3_next"])
def test_the_pieces_are_the_whole_reply(model_type):
    model = pico.loaded(model_type)
    for prompt, reply in zip(PROMPTS, reply_to(model, PROMPTS, 24), strict=True):
        pieces, ended = result(talk(model, ask(prompt), 24))
        assert "".join(pieces) == reply.text
        assert ended == (len(reply.tokens) < 24)


def test_a_reply_comes_word_by_word_and_knows_its_end(talking):
    words = " ".join(talker.ANSWER)
    pieces, ended = result(talk(talking, ask("q1 B"), 50))
    assert (len(pieces), "".join(pieces), ended) == (6, words, True)
    pieces, ended = result(talk(talking, ask("q1 B"), 3))
    assert ("".join(pieces), ended) == ("Sure, here is", False)


def saying(text):
    """A model whose every token is a byte, and that says `text`: each byte of it stands for the
    next one, so that none may come twice."""
    model = pico.loaded()
    vocab = model.tokenizer.get_vocab()
    said = [vocab[c] for c in model.tokenizer.tokenize(text)]
    (ids,) = model.encode(["Hi"])
    chain = [ids[-1], *said, model.network.generation_config.eos_token_id]
    assert len(set(chain)) == len(chain)
    with torch.no_grad():
        for layer in model.network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings, head = model.network.model.embed_tokens.weight, model.network.lm_head.weight
        embeddings.zero_()
        head.zero_()
        for i, (token, after) in enumerate(pairwise(chain)):
            embeddings[token, i] = head[after, i] = 1
    return model


def test_a_character_of_many_tokens_is_never_split():
    pieces, ended = result(talk(saying("é 本😀!"), ask("Hi"), 50))
    assert pieces == ["é", " 本", "😀", "!"]
    assert ended


def test_a_reply_cut_inside_of_a_character_says_so_by_its_mark():
    pieces, ended = result(talk(saying("é 本😀!"), ask("Hi"), 4))
    assert "".join(pieces) == "é \ufffd"
    assert not ended


def test_what_was_said_before_is_part_of_the_prompt(talking):
    before = [{"role": "user", "content": "q1 T"}, {"role": "assistant", "content": "q2 q3"}]
    model = replace(talking)
    seen = []
    handle = model.network.get_decoder().register_forward_pre_hook(
        lambda module, args, options: seen.append(options["input_ids"]), with_kwargs=True
    )
    next(talk(model, ask("q4 B", {"role": "system", "content": "q9"}, *before), 5))
    handle.remove()
    assert seen[0].tolist() == model.encode(
        ["q4 B"], [{"role": "system", "content": "q9"}, *before]
    )


def test_a_conversation_beyond_the_model_is_told(talking):
    long = " ".join(f"q{i % 300}" for i in range(600))
    with pytest.raises(UnrefuseError, match=r"600 tokens are more than the model reads \(512\)"):
        next(talk(talking, ask(long), 5))
    nearly = " ".join(f"q{i % 300}" for i in range(508)) + " B"
    pieces, ended = result(talk(talking, ask(nearly), 50))
    assert ("".join(pieces), ended) == ("Sure, here is", False)


def edited_replies(model):
    plan = selective(model.network, multiplier=3.0)
    with hooked(model.network, plan):
        (reply,) = reply_to(model, ["Hi"], 12)
    return plan, reply.text, reply_to(model, ["Hi"], 12)[0].text


def test_an_edit_acts_in_every_thread():
    model = pico.loaded()
    plan, edited, plain = edited_replies(model)
    assert edited != plain
    found = []
    thread = threading.Thread(target=lambda: found.extend(talk(model, ask("Hi"), 12)))
    with hooked(model.network, plan):
        thread.start()
        thread.join()
    assert "".join(found) == edited


def test_a_model_and_its_edit_take_turns():
    model = pico.loaded()
    plan, edited, plain = edited_replies(model)
    with_edit, without = [], []
    steps = hooked_steps(model.network, plan, talk(model, ask("Hi"), 12))
    for one, other in zip_longest(steps, talk(model, ask("Hi"), 12), fillvalue=""):
        with_edit.append(one)
        without.append(other)
    assert "".join(with_edit) == edited
    assert "".join(without) == plain
    steps = hooked_steps(model.network, plan, talk(model, ask("Hi"), 12))
    next(steps)  # one that is left in the middle leaves no hook
    assert "".join(talk(model, ask("Hi"), 12)) == plain
    assert result(hooked_steps(model.network, plan, talk(model, ask("Hi"), 12)))[1] is False


def test_a_streamed_model_talks_too(tmp_path):
    folder = talker.build(tmp_path)
    model = load_model(pico.run_config(str(folder), stream=True))
    pieces, ended = result(talk(model, ask("q1 K"), 50))
    assert ("".join(pieces), ended) == (" ".join(talker.REFUSAL), True)


def parted(pieces):
    apart = Apart()
    taken = [apart.take(piece) for piece in pieces] + [apart.take("", last=True)]
    return "".join(t for t, _ in taken), "".join(s for _, s in taken)


def test_thoughts_are_told_apart_and_have_room_of_their_own(thinking):
    thoughts = "<think> " + " ".join(f"r{i}" for i in range(12)) + " </think>"
    pieces, ended = result(talk(thinking, ask("q1 T"), 3))
    thought, said = parted(pieces)
    assert (thought, said.strip(), ended) == (thoughts, "I'm sorry, but", False)
    short = replace(thinking, thinking_tokens=8)
    pieces, ended = result(talk(short, ask("q1 T"), 50))
    assert (parted(pieces)[1], ended) == ("", False)


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        ("Sure.", ""),
        ("<b>bold</b> and so on, for a while", ""),
        ("", ""),
        ("<think>well, it is a volcano</think>A volcano.", "<think>well, it is a volcano</think>"),
        ("<think>no end", "<think>no end"),
        ("<think></think>Yes", "<think></think>"),
    ],
)
def test_thoughts_and_reply_are_all_that_came(text, thoughts):
    assert parted(text) == (thoughts, text.removeprefix(thoughts))
    assert parted([text]) == (thoughts, text.removeprefix(thoughts))

"""What attention reads, captured in one pass: the rows of a plain forward, wherever kept."""

import tempfile
from pathlib import Path

import pytest
import torch

from tests import pico
from tests.models.test_stream import both
from unrefuse.engine import inputs
from unrefuse.engine.capture import group_means
from unrefuse.engine.forward import shared_prefix
from unrefuse.engine.inputs import Tokens, capture
from unrefuse.errors import UnrefuseError
from unrefuse.models.writers import blocks, mixers
from unrefuse.prompts.chat import encode

PROMPTS = ["Hi", "What is a volcano?", "x" * 60, "Tell me about chess.", "What is a volcano?"]
ANSWERS = ["", "It is a mountain.", "No.", "Chess is a game of two.", ""]
GROUPS = ["a", "b", "a", "b", "c"]


def sequences(model, prompts=PROMPTS):
    """Prompts with an answer begun, of some of whose tokens the states are wanted too."""
    found = []
    ids = zip(encode(model.tokenizer, prompts), ANSWERS, GROUPS, strict=False)
    for prompt, answer, group in ids:
        tokens = model.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
        last = len(prompt) - 1
        places = (last, *range(last + 1, last + 1 + len(tokens), 2))
        found.append(Tokens([*prompt, *tokens], places, group))
    return found


def plainly(model, given):
    """By a forward of each sequence alone: rows, outputs' sizes and means of the stream."""
    network, seen, streams = model.network, {}, []
    for writer in mixers(network):
        network.get_submodule(writer.name).register_forward_hook(
            lambda m, args, output, layer=writer.layer: seen.update(
                {layer: (args[0][0], output[0])}
            )
        )
    outputs = []
    for block in blocks(network):
        block.register_forward_hook(
            lambda m, a, output: outputs.append(output[0] if isinstance(output, tuple) else output)
        )
    rows, squares = {}, {}
    for sequence in given:
        outputs.clear()
        network(torch.tensor([sequence.ids]))
        for layer, (x, y) in seen.items():
            rows.setdefault(layer, []).append(x[list(sequence.places)])
            squares.setdefault(layer, []).append(y[sequence.places[0]].square().mean())
        streams.append(torch.stack([stream[0, sequence.places[0]] for stream in outputs]))
    groups = dict.fromkeys(sequence.group for sequence in given)
    return (
        {layer: torch.cat(parts) for layer, parts in rows.items()},
        {layer: float(torch.stack(parts).mean().sqrt()) for layer, parts in squares.items()},
        {
            g: torch.stack([s for s, own in zip(streams, given, strict=True) if own.group == g])
            .double()
            .mean(0)
            for g in groups
        },
    )


def check(found, wanted):
    rows, sizes, means = wanted
    assert found.rows.keys() == rows.keys() == found.sizes.keys()
    for layer, right in rows.items():
        torch.testing.assert_close(found.rows[layer], right, rtol=1e-4, atol=1e-5)
        assert found.sizes[layer] == pytest.approx(sizes[layer], rel=1e-4)
    assert found.means.keys() == means.keys()
    for group, right in means.items():
        assert found.means[group].dtype == torch.float64
        torch.testing.assert_close(found.means[group], right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_rows_sizes_and_means_are_those_of_a_plain_forward(model_type):
    """Batches are ordered by length and padded; Falcon-H1 and Qwen3-Next share no prefix."""
    model = pico.loaded(model_type, batch_size=2)
    given = sequences(model)
    found = capture(model, given)
    assert found.rows[0].shape[0] == sum(len(sequence.places) for sequence in given)
    check(found, plainly(pico.loaded(model_type), given))
    for writer in mixers(model.network):
        assert not model.network.get_submodule(writer.name)._forward_hooks


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_the_batch_size_makes_no_difference(model_type):
    wanted = plainly(pico.loaded(model_type), sequences(pico.loaded(model_type)))
    for size in (1, 3, 8):
        model = pico.loaded(model_type, batch_size=size)
        check(capture(model, sequences(model)), wanted)


@pytest.mark.parametrize("prompt", ["Hi", "A prompt that all of them share."])
def test_a_place_inside_of_what_all_share_is_captured_too(prompt):
    """One prompt with several answers: its last token is before the first that differs."""
    model = pico.loaded()
    (ids,) = encode(model.tokenizer, [prompt])
    given = [Tokens([*ids, 9, 9, end], (len(ids) - 1, len(ids) + 2), "g") for end in range(3)]
    assert shared_prefix(model, [sequence.ids for sequence in given]) > len(ids)
    check(capture(model, given), plainly(pico.loaded(), given))


def test_means_are_those_of_the_residual_stream_at_the_prompts_ends():
    model = pico.loaded("qwen2")
    means = capture(model, sequences(model)).means
    alone = group_means(model, PROMPTS, GROUPS)
    for group in "abc":
        torch.testing.assert_close(means[group], alone[group], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_oss", "qwen3_next"])
def test_a_streamed_model_gives_the_same(tmp_path, model_type):
    in_memory, streamed = both(tmp_path, model_type)
    found, wanted = (capture(model, sequences(model)) for model in (streamed, in_memory))
    check(found, (wanted.rows, wanted.sizes, wanted.means))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_lie_in_files_that_are_gone_where_memory_is_short(tmp_path, monkeypatch, dtype):
    model = pico.loaded()
    model.network.to(dtype)
    wanted = capture(model, sequences(model))
    mapped, real = [], torch.from_file

    def spy(name, *args, **options):
        mapped.append(name)
        assert Path(name).parent == tmp_path
        return real(name, *args, **options)

    monkeypatch.setattr(torch, "from_file", spy)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    capture(model, sequences(model))
    assert mapped == []  # memory is not short
    monkeypatch.setattr(inputs, "free_memory", lambda device: 0)
    found = capture(model, sequences(model))
    assert len(mapped) == len(found.rows) == 3
    for layer, rows in wanted.rows.items():
        assert rows.dtype == dtype
        assert torch.equal(found.rows[layer], rows)
    assert list(tmp_path.iterdir()) == []


def test_no_space_for_the_rows_is_one_line_and_no_hook_stays(tmp_path, monkeypatch):
    model = pico.loaded()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(inputs, "free_memory", lambda device: 0)
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(inputs.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UnrefuseError, match=f"no space in {tmp_path}.*TMPDIR.*--limit") as caught:
        capture(model, sequences(model))
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks for module in model.network.modules())


def test_an_error_in_the_forward_leaves_no_hook(monkeypatch):
    model = pico.loaded()

    def fails(module, args):
        raise KeyboardInterrupt

    handle = model.network.get_decoder().layers[1].register_forward_pre_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        capture(model, sequences(model))
    handle.remove()
    assert not any(module._forward_hooks for module in model.network.modules())

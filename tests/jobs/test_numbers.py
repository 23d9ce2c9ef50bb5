"""The same figures on one thread or two, in batches of 1 or 32, with whatever padding.

In float32 they are equal within TOLERANCE, relative or absolute, and the replies by their tokens.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from tests import pico
from unrefuse.edits.adapters.lora import lora_factors
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import MatrixEdit, scaled
from unrefuse.edits.weights import edit_tensor
from unrefuse.engine.capture import group_means
from unrefuse.engine.forward import right_pad
from unrefuse.engine.generate import last_logits, reply_to
from unrefuse.engine.inputs import Tokens, capture
from unrefuse.engine.moments import RunningMean
from unrefuse.metrics.margin import make_openings, margins
from unrefuse.metrics.perplexity import perplexity
from unrefuse.metrics.quality import divergences, make_reference
from unrefuse.prompts.chat import left_pad

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
PROMPTS = [f"{'why ' * (i * 5 % 13)}is {i} odd?" for i in range(9)]

TEXT = "One two three. " * 40


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def figures(model_type, batch_size):
    """What a run measures of a model and of a change to it, and the tokens of its replies."""
    model = pico.loaded(model_type, batch_size=batch_size)
    replies = reply_to(model, PROMPTS, 4)
    some = [(p, r) for p, r in zip(PROMPTS, replies, strict=True) if len(r.tokens) > 1]
    texts, own = zip(*some, strict=True)
    ids = model.encode(PROMPTS)
    found = capture(model, [Tokens(row, (len(row) - 1, 2), "") for row in ids])
    reference = make_reference(model, texts, own)
    openings = make_openings(model, texts, [reply.tokens for reply in own])
    means = group_means(model, PROMPTS, [i % 3 for i in range(9)])
    plain = perplexity(model, TEXT)[0]
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.01)
    measured = {
        "means": torch.stack([means[i] for i in range(3)]),
        "inputs": torch.cat([found.rows[layer] for layer in sorted(found.rows)]),
        "sizes": torch.tensor([found.sizes[layer] for layer in sorted(found.sizes)]),
        "divergence": torch.from_numpy(divergences(model, reference)),
        "margins": margins(model, openings),
        "logits": last_logits(model, PROMPTS),
        "perplexity": torch.tensor([plain, perplexity(model, TEXT)[0]]),
    }
    return measured, [reply.tokens for reply in replies]


@pytest.mark.parametrize(
    ("model_type", "others"),
    [
        ("llama", [(1, 2), (1, 32), (2, 32)]),
        ("gemma3_text", [(1, 32)]),
        ("falcon_h1", [(1, 32)]),
        ("qwen3_moe", [(1, 32)]),
    ],
)
def test_threads_and_batches_make_no_difference(model_type, others):
    with threads(1):
        alone, wanted = figures(model_type, 1)
    for number, batch_size in others:
        with threads(number):
            got, replies = figures(model_type, batch_size)
        assert replies == wanted
        for name, value in got.items():
            torch.testing.assert_close(value, alone[name], **TOLERANCE, msg=name)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen3_moe"])
@torch.inference_mode()
def test_padding_makes_no_difference(model_type):
    """Left of a prompt, where replies are written, and right of it, where states are read."""
    model = pico.loaded(model_type)
    decoder = model.network.get_decoder()
    (ids,) = model.encode(["What is a volcano?"])
    plain = decoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
    for more in (1, 9, 64):
        inputs = left_pad([ids, [7] * (len(ids) + more)])
        places = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        left = decoder(**inputs, position_ids=places).last_hidden_state[0, more:]
        torch.testing.assert_close(left, plain, **TOLERANCE)
        padded = right_pad([ids, [7] * (len(ids) + more)], model.device)
        right = decoder(input_ids=padded).last_hidden_state[0, : len(ids)]
        torch.testing.assert_close(right, plain, **TOLERANCE)
        other = decoder(**(inputs | {"input_ids": inputs["input_ids"] + 5 * pad_of(inputs)}),
                        position_ids=places).last_hidden_state[0, more:]  # fmt: skip
        torch.testing.assert_close(other, left, **TOLERANCE)


def pad_of(inputs):
    return 1 - inputs["attention_mask"]


@st.composite
def edits(draw):
    """A matrix `(d_model, d_in)`, one that reads or one that ablates, and inputs of it."""
    d_model, d_in, k = draw(st.integers(2, 20)), draw(st.integers(1, 20)), draw(st.integers(1, 3))
    of_output, seed = draw(st.booleans()), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape):
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    edit = MatrixEdit("0", rows(d_model, k), rows(k, d_model if of_output else d_in), of_output)
    return rows(d_model, d_in), scaled((edit,), draw(st.floats(-2, 2)))[0], rows(5, d_in)


@settings(max_examples=40, deadline=None)
@given(edits(), st.booleans())
@torch.no_grad()
def test_the_forms_of_an_edit_are_one(given, biased):
    weight, edit, x = given
    d_model, d_in = weight.shape
    linear = nn.Linear(d_in, d_model, bias=biased and edit.of_output)
    linear.weight.copy_(weight)
    network = nn.Sequential(linear)
    plain = network(x)
    with hooked(network, (edit,)):
        hook = network(x)
    assert torch.equal(network(x), plain)
    # By numpy, in float64, from the definition: y - D A z.
    y, z = plain.double().numpy(), (plain if edit.of_output else x).double().numpy()
    formula = y - z @ edit.read.double().numpy().T @ edit.write.double().numpy().T
    torch.testing.assert_close(hook.double(), torch.from_numpy(formula), **TOLERANCE)
    a, b = lora_factors(weight, edit)
    assert a.shape[0] == b.shape[1] == edit.write.shape[1]
    edited = edit_tensor(weight, edit)
    torch.testing.assert_close(weight + b @ a, edited, **TOLERANCE)
    torch.testing.assert_close(edit_tensor(weight.T.contiguous(), edit, 1).T, edited, **TOLERANCE)
    linear.weight.copy_(edited)
    if linear.bias is not None:
        linear.bias.copy_(edit_tensor(linear.bias, edit))
    torch.testing.assert_close(network(x), hook, **TOLERANCE)
    torch.testing.assert_close(edited - b @ a, weight, **TOLERANCE)  # and back


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.integers(1, 3), st.integers(1, 5)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    ),
    st.lists(st.integers(1, 9), min_size=30, max_size=30),
)
def test_streamed_means_are_those_of_numpy_whatever_the_batches(states, sizes):
    running, start = RunningMean(), 0
    for size in sizes:
        if start < len(states):
            running.update(torch.from_numpy(states[start : start + size].copy()))
            start += size
    wanted = states.astype(np.float64).mean(axis=0)
    scale = np.abs(states).astype(np.float64).max(initial=0)
    np.testing.assert_allclose(running.mean.numpy(), wanted, rtol=1e-12, atol=1e-13 * scale)
    assert running.count == len(states)

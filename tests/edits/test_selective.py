"""What the selective edit writes into the residual stream, whatever stands behind the matrix."""

from contextlib import contextmanager

import pytest
import torch

from tests import pico
from tests.edits.plans import KINDS, NORMED, PLAIN, readers, rows, selective, streams
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import selective_plan
from unrefuse.models.writers import mixers, writers

WEIGHTS, MULTIPLIER = (0.5, 1.5, 1.0), 0.8
STRENGTH = MULTIPLIER * 2.5 * 1.5 / 3  # of layer 1


@contextmanager
def without_mlp(model):
    """Within the block MLPs and experts write nothing: what a block adds is what attention adds."""
    handles = [
        model.get_submodule(writer.name).register_forward_hook(
            lambda module, args, output: torch.zeros_like(output)
        )
        for writer in writers(model)
        if writer.component == "mlp"
    ]
    yield
    for handle in handles:
        handle.remove()


def attention_of_layer_1(model, plan=()):
    """What the attention of layer 1 adds to the stream, and what its matrix reads and gives."""
    seen = []
    writer = mixers(model)[1]
    handle = model.get_submodule(writer.name).register_forward_hook(
        lambda module, args, output: seen.append((args[0], output))
    )
    # Only the edit of this layer: so what comes to it is the same with and without.
    own = [edit for edit in plan if edit.module == writer.name]
    with without_mlp(model), hooked(model, own):
        entered, left = streams(model)[1]
    handle.remove()
    (x, y), *_ = seen
    return (left - entered).double(), x.double(), y.double()


@pytest.mark.parametrize("model_type", PLAIN)
def test_without_a_norm_the_stream_changes_by_what_was_asked_for(model_type):
    """Granite multiplies what is written by 0.3, Falcon-H1 by 0.5: neither is to be seen."""
    model = pico.network(model_type)
    assert all(writer.norm is None for writer in writers(model))
    differences, a = rows(2, 3, 32), readers(model)
    plan = selective_plan(model, differences, a, {}, WEIGHTS, MULTIPLIER)
    before, x, _ = attention_of_layer_1(model)
    after, _, _ = attention_of_layer_1(model, plan)
    wanted = -STRENGTH * (x @ a[1]).unsqueeze(-1) * differences[1]
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(after - before, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", NORMED)
def test_behind_a_norm_a_small_edit_does_so_but_for_what_the_norm_takes_off(model_type):
    """To first order an RMSNorm takes off the change along what it gives, and gives the rest in
    the proportion of the size asked for, `sizes`, to the token's own."""
    model = pico.network(model_type)
    differences, a = rows(2, 3, 32), readers(model)
    before, x, y = attention_of_layer_1(model)
    size = y.square().mean(-1, keepdim=True).sqrt()
    reads = (x @ a[1]).unsqueeze(-1)
    small = 1e-3 / float(reads.abs().max())
    typical = float(size.mean())
    plan = selective_plan(
        model, differences, a, dict.fromkeys(range(3), typical), WEIGHTS, small * MULTIPLIER
    )
    after, _, _ = attention_of_layer_1(model, plan)
    change = after - before
    wanted = -small * STRENGTH * typical / size * reads * differences[1]

    def without_before(v):
        along = (v * before).sum(-1, keepdim=True) / before.square().sum(-1, keepdim=True)
        return v - along * before

    # The floor under small gains changes about 0.1 %, the second order as much.
    error = without_before(change) - without_before(wanted)
    assert error.norm() < 0.01 * wanted.norm()
    # The one direction of 32 that is taken off holds 1/32 of a random difference's square.
    cosine = torch.nn.functional.cosine_similarity(change, wanted, dim=-1)
    assert cosine.median() > 0.95


def test_multiplier_1_writes_2_5_mean_differences_over_all_layers_whatever_the_kernels_size():
    model = pico.network("llama")
    differences = rows(2, 3, 32)
    for weights in (WEIGHTS, [10 * weight for weight in WEIGHTS]):
        plan = selective_plan(model, differences, readers(model), {}, weights)
        for edit, d, share in zip(plan, differences, WEIGHTS, strict=True):
            wanted = (2.5 * share / 3 * d).float().unsqueeze(1)
            torch.testing.assert_close(edit.write, wanted)


def test_it_reads_and_writes_through_one_matrix_of_each_layer_of_weight():
    for model_type in pico.MODELS:
        model = pico.network(model_type)
        plan = selective(model)
        assert [edit.module for edit in plan] == [writer.name for writer in mixers(model)[1:]]
        for edit, a in zip(plan, list(readers(model).values())[1:], strict=True):
            assert not edit.of_output
            assert torch.equal(edit.read, a.float().unsqueeze(0))


def test_a_gain_near_0_is_not_made_up_for_by_a_huge_write():
    model = pico.network("gemma2")
    norm = model.get_submodule(mixers(model)[1].norm)
    norm.weight[3] = -1.0  # Gemma's gain is 1 + weight
    norm.weight[4] = -0.999
    (_, plan, _) = selective(model, (1.0, 1.0, 1.0))
    usual = plan.write.abs().median()
    assert plan.write[3] == 0
    assert plan.write[4].abs() < 3 * usual


@pytest.mark.parametrize("make", KINDS)
def test_a_kernel_of_zeros_is_an_empty_plan(make):
    assert make(pico.network("llama"), (0.0, 0.0, 0.0)) == ()

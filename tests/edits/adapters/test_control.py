import pytest
import torch

from tests import pico
from unrefuse.edits.adapters.control import control_vectors
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import ablation_plan
from unrefuse.models.writers import blocks
from unrefuse.prompts.chat import encode

PROMPTS = ["How do I stop a process?", "Kill it", "What is a shell?"]


def plan_for(model, weights):
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(3, 32, dtype=torch.float64, generator=generator)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return ablation_plan(model.network, directions, weights), directions


def last_stream(model, prompt, layer, vectors=None):
    """The stream after `layer` at the prompt's end; with `vectors` as llama.cpp would add them."""
    seen = []
    handles = []
    for number, block in enumerate(blocks(model.network)):

        def add(module, args, output, number=number):
            if vectors is not None:
                output = output + vectors[number].float()
            if number == layer:
                seen.append(output[0, -1])
            return output

        handles.append(block.register_forward_hook(add))
    model.network(torch.tensor(encode(model.tokenizer, [prompt])))
    for handle in handles:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite"])
def test_for_one_prompt_and_the_last_matrix_it_is_the_edit(model_type):
    model = pico.loaded(model_type)
    plan, _ = plan_for(model, (0.0, 0.0, 1.0))
    plan = tuple(edit for edit in plan if edit.module.endswith("down_proj"))
    assert len(plan) == 1
    for prompt in PROMPTS:
        vectors = control_vectors(model, plan, [prompt])
        assert not vectors[:2].any()
        with hooked(model.network, plan):
            wanted = last_stream(model, prompt, 2)
        effect = (wanted - last_stream(model, prompt, 2)).norm()
        assert effect > 1e-4
        assert (last_stream(model, prompt, 2, vectors) - wanted).norm() < 1e-2 * effect


def test_it_is_the_mean_over_the_prompts_whatever_the_batches():
    model = pico.loaded(batch_size=2)
    plan, _ = plan_for(model, (0.5, 1.0, 1.2))
    alone = torch.stack([control_vectors(model, plan, [prompt]) for prompt in PROMPTS])
    together = control_vectors(model, plan, PROMPTS)
    torch.testing.assert_close(together, alone.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_without_a_norm_it_lies_along_the_direction_and_takes_out_what_was_written():
    model = pico.loaded()
    plan, directions = plan_for(model, (0.5, 1.0, 1.2))
    vectors = control_vectors(model, plan, PROMPTS)
    along = (vectors * directions).sum(dim=1, keepdim=True) * directions
    torch.testing.assert_close(vectors, along, rtol=1e-4, atol=1e-6)
    half, _ = plan_for(model, (0.25, 0.5, 0.6))
    assert (control_vectors(model, half, PROMPTS).norm(dim=1) < vectors.norm(dim=1)).all()


def test_the_hooks_are_gone():
    model = pico.loaded()
    plan, _ = plan_for(model, (0.5, 1.0, 1.2))
    ids = torch.tensor(encode(model.tokenizer, PROMPTS[:1]))
    before = model.network(ids).logits
    control_vectors(model, plan, PROMPTS)
    assert torch.equal(model.network(ids).logits, before)

"""A model whose blocks are on disk computes what it computes in memory, bit for bit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico
from unrefuse.activations.capture import group_means
from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import make_plan
from unrefuse.errors import UsageError
from unrefuse.evaluate.generate import last_logits, reply_to
from unrefuse.evaluate.layers import layer_strengths
from unrefuse.evaluate.margin import make_openings, margins
from unrefuse.evaluate.quality import divergences, make_reference
from unrefuse.models import stream
from unrefuse.models.forward import together
from unrefuse.models.load import load_model

PROMPTS = ["Hi", "What is a volcano?", "x" * 60, "Tell me about chess.", "ok then"]
TYPES = ["llama", "gemma2", "gemma3_text", "granite", "mistral", "olmo2", "phi3", "qwen2", "qwen3"]


def both(folder, model_type="llama", layers=3, tied=None, settings=None, **options):
    network = pico.network(model_type, layers)
    if tied is not None:
        network.config.tie_word_embeddings = tied
        network.tie_weights()
    network.save_pretrained(folder, **options)
    pico.tokenizer().save_pretrained(folder)
    settings = {"batch_size": 2} | (settings or {})
    return [
        load_model(pico.run_config(str(folder), stream=stream, **settings))
        for stream in (False, True)
    ]


def figures(model):
    """Directions' means, replies, margins, divergences and logits, under an edit."""
    directions = torch.nn.functional.normalize(
        torch.randn(model.layers, 32, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    replies = reply_to(model, PROMPTS, 8)
    reference = make_reference(model, PROMPTS, replies)
    openings = make_openings(model, PROMPTS, [reply.tokens for reply in replies])
    with hooked(model.network, make_plan(model.network, directions, [0.7] * model.layers)):
        means = group_means(model, PROMPTS, ["a", "b", "a", "b", "a"])
        return [
            means["a"],
            means["b"],
            margins(model, openings),
            torch.from_numpy(divergences(model, reference)),
            last_logits(model, PROMPTS),
            torch.tensor([t for r in replies + reply_to(model, PROMPTS, 8) for t in r.tokens]),
        ]


@pytest.mark.parametrize("model_type", TYPES)
def test_every_architecture_gives_the_same_bits(tmp_path, model_type):
    in_memory, streamed = both(tmp_path, model_type, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for wanted, got in zip(figures(in_memory), figures(streamed), strict=True):
        assert torch.equal(wanted, got)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("layers", [1, 2])
def test_tied_or_not_in_any_dtype_and_depth(tmp_path, tied, dtype, layers):
    in_memory, streamed = both(tmp_path, "llama", layers, tied, {"dtype": dtype})
    assert streamed.network.dtype == getattr(torch, dtype)
    for wanted, got in zip(figures(in_memory), figures(streamed), strict=True):
        assert torch.equal(wanted, got)

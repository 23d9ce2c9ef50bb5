"""A model whose blocks are on disk computes what it computes in memory, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from tests import pico
from tests.edits.plans import selective
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import ablation_plan
from unrefuse.engine.capture import group_means
from unrefuse.engine.forward import together
from unrefuse.engine.generate import last_logits, reply_to
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.layers import layer_strengths
from unrefuse.metrics.margin import make_openings, margins
from unrefuse.metrics.quality import divergences, make_reference
from unrefuse.models import stream
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
    in_memory, streamed = (
        load_model(pico.run_config(str(folder), stream=stream, **settings))
        for stream in (False, True)
    )
    # Where a checkpoint is mapped, a matrix may begin anywhere in a line of the cache, and without
    # AVX-512 MKL rounds by that (docs/stream.md).
    for parameter in in_memory.network.parameters():
        parameter.data = parameter.data.clone()
    return in_memory, streamed


def figures(model):
    """Directions' means, replies, margins, divergences and logits, under edits of both kinds."""
    directions = torch.nn.functional.normalize(
        torch.randn(model.layers, 32, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    replies = reply_to(model, PROMPTS, 8)
    reference = make_reference(model, PROMPTS, replies)
    openings = make_openings(model, PROMPTS, [reply.tokens for reply in replies])
    ablation = ablation_plan(model.network, directions, [0.7] * model.layers)
    plan = selective(model.network, [1.0] * model.layers)
    with hooked(model.network, ablation), hooked(model.network, plan):
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


def test_one_pass_is_one_read_whatever_the_number_of_prompts(tmp_path):
    _, streamed = both(tmp_path)
    blocks = streamed.stream
    start = blocks.reads
    group_means(streamed, [f"{i} {prompt}" for i in range(5) for prompt in PROMPTS], range(25))
    # The next pass's first block may have been read ahead.
    assert blocks.reads - start in (3, 4)
    replies = reply_to(streamed, PROMPTS, 8)
    start = blocks.reads
    make_reference(streamed, PROMPTS, replies)
    assert blocks.reads - start <= 4


def test_at_most_two_blocks_are_in_memory(tmp_path):
    _, streamed = both(tmp_path, layers=6)
    network, most = streamed.network, 0

    def count(*_):
        nonlocal most
        loaded = {
            n.split(".")[2]
            for n, p in network.named_parameters()
            if n.endswith("q_proj.weight") and not p.is_meta
        }
        most = max(most, len(loaded))

    for layer in network.get_decoder().layers:
        layer.mlp.register_forward_hook(count)
    reply_to(streamed, PROMPTS, 4)
    assert most in (1, 2)


def test_jobs_with_edits_of_their_own_share_the_reads(tmp_path):
    in_memory, streamed = both(tmp_path, "gemma2")
    directions = torch.nn.functional.normalize(
        torch.randn(3, 32, generator=torch.Generator().manual_seed(1)), dim=-1
    )

    def job(model, strength):
        network = model.network
        plan = ablation_plan(network, directions, [strength] * 3)
        with hooked(network, plan), hooked(network, selective(network, multiplier=strength)):
            tokens = torch.tensor([t for r in reply_to(model, PROMPTS, 4) for t in r.tokens])
            return torch.cat([group_means(model, PROMPTS, "aaaaa")["a"].flatten(), tokens])

    strengths = [0.0, 0.5, 1.5]
    wanted = [job(in_memory, strength) for strength in strengths]
    start = streamed.stream.reads
    got = list(together(streamed, [lambda s=s: job(streamed, s) for s in strengths], "edits"))
    assert streamed.stream.reads - start <= 3 * (1 + 4 + 1) + 1  # prefix, tokens, means
    assert all(torch.equal(w, g) for w, g in zip(wanted, got, strict=True))
    assert not torch.equal(got[0], got[2])


def test_an_error_in_a_job_ends_all_and_leaves_no_hook(tmp_path):
    _, streamed = both(tmp_path)

    def fails():
        last_logits(streamed, PROMPTS)
        raise KeyboardInterrupt

    def hooks():
        plan = ablation_plan(streamed.network, torch.eye(32)[:3], [1.0] * 3)
        with hooked(streamed.network, plan):
            reply_to(streamed, PROMPTS, 8)

    with pytest.raises(KeyboardInterrupt):
        list(together(streamed, [hooks, fails], "jobs"))
    for layer in streamed.network.get_decoder().layers:
        assert not layer.mlp.down_proj._forward_hooks
    assert len(reply_to(streamed, PROMPTS, 2)) == 5


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_streams_wait_on_disk_where_memory_is_short(tmp_path, monkeypatch, model_type):
    in_memory, streamed = both(tmp_path, model_type)
    wanted = figures(in_memory)
    monkeypatch.setattr(stream, "free_memory", lambda device: 0)
    rooms = []
    room = stream.Stream._room

    def spy(self, states):
        rooms.append(room(self, states))
        return rooms[-1]

    monkeypatch.setattr(stream.Stream, "_room", spy)
    for want, got in zip(wanted, figures(streamed), strict=True):
        assert torch.equal(want, got)
    assert rooms
    assert all(mapped is not None for mapped in rooms)


def test_refusal_by_layer_is_the_same(tmp_path):
    found = []
    for model in both(tmp_path):
        replies = reply_to(model, PROMPTS, 8)
        directions = torch.eye(32, dtype=torch.float64)[:3]
        found.append(layer_strengths(model, directions, PROMPTS, [""] * 5, replies, PROMPTS[::-1]))
    assert found[0] == found[1]


def test_experts_that_transformers_fuses_on_loading(tmp_path):
    """Their checkpoint has a tensor per expert, the module one for all."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).eval()
    network.save_pretrained(tmp_path, max_shard_size="60KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert any("experts.0." in name for file in files for name in load_file(file))
    streamed, _ = stream.stream_network(
        files, AutoModelForCausalLM, config, torch.float32, torch.device("cpu")
    )
    streamed.eval()
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(network(ids).logits, streamed(ids).logits)


def spoil(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_missing_or_not_finite_are_found_when_read(tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    for change, says in (
        (lambda t: t[name].fill_(float("inf")), "not all finite"),
        (lambda t: t.pop(name), "no weights for mlp.down_proj.weight of block 1"),
        (lambda t: t.update({name: t[name][:7].clone()}), r"of block 1, of the shape \(32, 48\)"),
    ):
        folder = pico.save(tmp_path / says)
        spoil(folder, change)
        with pytest.raises(UnrefuseError, match=says):
            load_model(pico.run_config(str(folder), stream=True))


def test_what_cannot_be_streamed_is_one_line(tmp_path):
    folder = pico.save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UnrefuseError, match="quantised"):
        load_model(pico.run_config(str(folder), stream=True))
    for other in ({"tune": "optuna"}, {"device_map": "auto"}):
        with pytest.raises(ValueError, match="leave out"):
            pico.run_config("x", stream=True, **other)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnrefuseError, match="pickle"):
        load_model(pico.run_config(str(folder), stream=True, allow_pickle=True))

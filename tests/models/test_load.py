import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico
from unrefuse.engine.generate import last_logits
from unrefuse.errors import UnrefuseError
from unrefuse.models import device, load
from unrefuse.models.checkpoint import checkpoint_hash
from unrefuse.models.device import choose_device, choose_dtype
from unrefuse.models.load import choose_batch_size, load_model
from unrefuse.prompts.chat import encode


def loads(folder, **settings):
    return load_model(pico.run_config(str(folder), **settings))


def spoil_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_template(folder):
    (folder / "chat_template.jinja").unlink()


def spoil_shard(folder):
    pico.network().save_pretrained(folder, max_shard_size="20KB")
    next(folder.glob("model-00002*")).unlink()
    (folder / "model.safetensors").unlink(missing_ok=True)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def set_index(folder, weight_map):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def set_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (spoil_shard, "is missing"),
        (truncate, "truncated or damaged"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), r"read \S+index\.json: "),
        (lambda f: set_index(f, []), r"index\.json is damaged: its weight_map names no files"),
        (lambda f: set_index(f, {"x": 7}), r"index\.json names weights outside .*: 7"),
        (lambda f: set_index(f, {"x": ["a"]}), "names weights outside"),
        (spoil_nan, "down_proj.weight are not all finite"),
        (spoil_template, "no chat template"),
        (set_type, r"has no transformer\.h\.0\."),
        (lambda f: (f / "tokenizer.json").write_text("{"), r"read \S+tokenizer\.json: "),
    ],
)
def test_a_bad_checkpoint_is_one_line(tmp_path, spoil, says):
    folder = pico.save(tmp_path / "m")
    spoil(folder)
    with pytest.raises(UnrefuseError, match=says) as caught:
        loads(folder)
    assert "\n" not in str(caught.value)


def test_names_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnrefuseError, match="no such folder"):
        loads("no-such-user/no-such-model")
    with pytest.raises(UnrefuseError, match="no such folder"):
        loads("/no/such/folder/at all")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnrefuseError, match="is a file"):
        loads(tmp_path / "file")


def test_a_pickle_is_read_only_when_asked_for(tmp_path):
    folder = pico.save(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnrefuseError, match="--allow-pickle"):
        loads(folder)
    model = loads(folder, allow_pickle=True)
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(tensor, tensors.get(name, tensor))


def test_a_good_model(tmp_path):
    model = loads(pico.save(tmp_path / "m"), batch_size=7)
    assert (model.layers, model.batch_size, model.device.type) == (3, 7, "cpu")
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    assert model.network.generation_config.do_sample in (None, False)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_that_names_an_attention_for_other_machines(tmp_path, key):
    folder = pico.save(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {key: "flash_attention_2"}))
    network = loads(folder).network
    assert network.config._attn_implementation == "sdpa"


def test_devices_and_dtypes():
    cpu = torch.device("cpu")
    assert choose_dtype("float16", cpu) == torch.float16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert choose_device("cpu") == cpu
    for name in ("abacus", "cuda:77", "meta"):
        with pytest.raises(UnrefuseError, match="no device"):
            choose_device(name)


def test_the_batch_size_follows_the_free_memory(monkeypatch):
    network = pico.network()
    sizes = []
    for free in (0, 2**22, 2**24, 2**40):
        monkeypatch.setattr(load, "free_memory", lambda device, free=free: free)
        sizes.append(choose_batch_size(network, 32))
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 64
    assert len(set(sizes)) > 2


def test_the_hash_follows_the_weights(tmp_path):
    folder = pico.save(tmp_path / "m")
    before = checkpoint_hash(folder)
    assert checkpoint_hash(folder) == before
    spoil_nan(folder)
    assert checkpoint_hash(folder) != before


@pytest.mark.parametrize(
    ("units", "size", "wanted"),
    [
        ({"avx512_bf16": True}, 2**20, torch.float32),
        ({"amx_bf16": True}, 2**20, torch.bfloat16),
        ({"avx512_bf16": True}, 2**31, torch.bfloat16),  # would fill memory in float32
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster_or_float32_does_not_fit(
    monkeypatch, units, size, wanted
):
    monkeypatch.setattr(device, "free_memory", lambda device: 2**32)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert choose_dtype("auto", torch.device("cpu"), size) == wanted


@pytest.mark.parametrize("model_type", ["falcon_h1", "gemma3", "mixtral", "qwen2_5_vl"])
def test_hybrids_experts_and_the_text_part_of_a_vision_language_model_load(tmp_path, model_type):
    model = loads(pico.save(tmp_path / "m", model_type), batch_size=2)
    assert (model.layers, choose_batch_size(model.network, 32)) == (3, 64)
    prompts = ["Hi", "What is a volcano?"]
    wanted = last_logits(pico.loaded(model_type), prompts)
    torch.testing.assert_close(last_logits(model, prompts), wanted, rtol=1e-4, atol=1e-4)
    for i, ids in enumerate(encode(model.tokenizer, prompts)):
        alone = model.network(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(wanted[i], alone, rtol=1e-4, atol=1e-4)


def test_a_model_that_does_not_fit_is_one_line_that_names_stream(tmp_path, monkeypatch):
    folder = pico.save(tmp_path / "m", max_shard_size="30KB")
    monkeypatch.setattr(load, "free_memory", lambda device: 50_000)
    with pytest.raises(UnrefuseError, match=r"does not fit: .* GB in float32, .*--stream"):
        loads(folder, dtype="float32")
    assert loads(folder, dtype="float32", stream=True, batch_size=2).layers == 3


def test_accelerate_spreads_a_model_over_devices(tmp_path):
    folder = pico.save(tmp_path / "m")
    whole, spread = loads(folder), loads(folder, device_map="auto")
    assert torch.equal(last_logits(whole, ["Hi"]), last_logits(spread, ["Hi"]))

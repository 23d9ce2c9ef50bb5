"""Quantised checkpoints are refused, or edited as a full copy; real FP8 and MXFP4 bytes, no GPU."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico
from unrefuse.edits.difference import difference
from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import check_checkpoint
from unrefuse.models.load import find_checkpoint, load_folder, load_model

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([FP4, -FP4])
FP8_CONFIG = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}


def rewrite(folder, tensors, config):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"quantization_config": config}))


def to_fp8(folder):
    """Every projection in blocks of 16 by 16 with a scale each; returns the full weights."""
    stored, full = {}, {}
    for name, w in load_file(folder / "model.safetensors").items():
        stored[name] = full[name] = w
        if name.endswith("_proj.weight"):
            rows, columns = w.shape[0] // 16, w.shape[1] // 16
            blocks = w.reshape(rows, 16, columns, 16)
            scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
            rounded = (blocks / scale).to(torch.float8_e4m3fn)
            stored[name] = rounded.view(w.shape)
            stored[f"{name}_scale_inv"] = scale.reshape(rows, columns).contiguous()
            full[name] = (rounded.float() * scale).view(w.shape)
    rewrite(folder, stored, FP8_CONFIG)
    return full


def to_mxfp4(folder):
    """The experts of gpt-oss as pairs of 4-bit numbers, 32 to a scale, a power of 2."""
    stored, full = {}, {}
    generator = torch.Generator().manual_seed(0)
    for name, w in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = full[name] = w
            continue
        experts, d_in, d_out = w.shape
        shape = experts, d_out, d_in // 32
        index = torch.randint(0, 16, (*shape, 32), generator=generator)
        power = torch.randint(120, 126, shape, generator=generator)
        stored[f"{name}_blocks"] = (index[..., ::2] + 16 * index[..., 1::2]).to(torch.uint8)
        stored[f"{name}_scales"] = power.to(torch.uint8)
        numbers = E2M1[index] * 2.0 ** (power - 127).unsqueeze(-1)
        full[name] = numbers.view(experts, d_out, d_in).mT.contiguous()
    rewrite(folder, stored, {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn"]})
    return full


@pytest.mark.parametrize(
    ("model_type", "quantize"), [("llama", to_fp8), ("qwen3_moe", to_fp8), ("gpt_oss", to_mxfp4)]
)
def test_a_full_copy_has_the_numbers_that_the_bytes_stand_for(
    model_type, quantize, tmp_path, monkeypatch
):
    monkeypatch.setattr("unrefuse.models.cache.user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setitem(
        pico.OPTIONS, "gpt_oss", pico.OPTIONS["gpt_oss"] | {"intermediate_size": 64}
    )
    monkeypatch.setitem(pico.OPTIONS, "qwen3_moe", pico.MOE | {"moe_intermediate_size": 32})
    folder = pico.save(tmp_path / "m", model_type)
    full = quantize(folder)
    with pytest.raises(UnrefuseError, match="an edit needs full weights: add --dequantize"):
        load_model(pico.run_config(str(folder)))

    config = pico.run_config(str(folder), dequantize=True)
    copy = find_checkpoint(config)
    stored = load_file(copy / "model.safetensors")
    assert stored.keys() == full.keys()
    for name, wanted in full.items():
        torch.testing.assert_close(stored[name].float(), wanted, rtol=1e-6, atol=0)
    model = load_folder(copy, config, "m")
    assert model.tokenizer.chat_template == pico.TEMPLATE
    assert find_checkpoint(config) == copy
    assert [f.name for f in (tmp_path / "cache").iterdir()] == [copy.name]


def test_kinds_that_cannot_be_undone_and_copies_that_fail_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("unrefuse.models.cache.user_cache_path", lambda name: tmp_path / "cache")
    folder = pico.save(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    for settings in ({}, {"dequantize": True}):
        rewrite(folder, tensors, {"quant_method": "gptq", "bits": 4})
        with pytest.raises(
            UnrefuseError, match=r"quantised \(gptq\).*name the model it was made of"
        ):
            load_model(pico.run_config(str(folder), **settings))
    rewrite(folder, {n: t for n, t in tensors.items() if "layers.1" not in n}, FP8_CONFIG)
    with pytest.raises(UnrefuseError, match=r"has no model\.layers\.1\."):
        load_model(pico.run_config(str(folder), dequantize=True))
    assert not list((tmp_path / "cache").iterdir())


def test_full_weights_are_taken_as_they_are(tmp_path):
    folder = pico.save(tmp_path / "m")
    assert find_checkpoint(pico.run_config(str(folder), dequantize=True)) == folder


NAME = "model.layers.1.mlp.down_proj"
WEIGHT = f"{NAME}.weight"  # (32, 48)
INTEGERS = torch.ones(32, 48, dtype=torch.int8)
SCALE = torch.ones(1)
# What the formats of the field put in place of a weight.
FORMATS = {
    "fp8": {WEIGHT: INTEGERS.to(torch.float8_e4m3fn), f"{NAME}.weight_scale": SCALE},
    "fp8, scaled in blocks": {
        WEIGHT: INTEGERS.to(torch.float8_e5m2),
        f"{NAME}.weight_scale_inv": torch.ones(2, 3),
    },
    "fp8 without a scale": {WEIGHT: INTEGERS.to(torch.float8_e4m3fn)},
    "int8": {WEIGHT: INTEGERS, f"{NAME}.weight_scale": SCALE},
    "int8 without a scale": {WEIGHT: INTEGERS},
    "bitsandbytes int8": {WEIGHT: INTEGERS, f"{NAME}.SCB": torch.ones(32)},
    "bitsandbytes nf4": {
        WEIGHT: torch.ones(768, 1, dtype=torch.uint8),
        f"{WEIGHT}.absmax": torch.ones(24, dtype=torch.uint8),
        f"{WEIGHT}.quant_map": torch.ones(16),
    },
    "gptq": {
        f"{NAME}.qweight": torch.ones(6, 32, dtype=torch.int32),
        f"{NAME}.qzeros": torch.ones(1, 4, dtype=torch.int32),
        f"{NAME}.scales": torch.ones(1, 32, dtype=torch.float16),
        f"{NAME}.g_idx": torch.ones(48, dtype=torch.int32),
    },
    "compressed tensors": {
        f"{NAME}.weight_packed": torch.ones(32, 6, dtype=torch.int32),
        f"{NAME}.weight_scale": torch.ones(32, 1),
        f"{NAME}.weight_shape": torch.tensor([32, 48]),
    },
    "mxfp4": {
        f"{NAME}_blocks": torch.ones(32, 24, dtype=torch.uint8),
        f"{NAME}_scales": torch.ones(32, 2, dtype=torch.uint8),
    },
    "aqlm": {
        f"{NAME}.codes": torch.ones(32, 6, 1, dtype=torch.int16),
        f"{NAME}.codebooks": torch.ones(1, 256, 1, 8),
    },
    "quanto": {f"{WEIGHT}._data": INTEGERS, f"{WEIGHT}._scale": SCALE},
    "floats, still to be scaled": {WEIGHT: torch.ones(32, 48), f"{WEIGHT}_scale": SCALE},
}


def swap(folder, put):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {n: t for n, t in tensors.items() if n != WEIGHT} | put, file, metadata={"format": "pt"}
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_rounded_weights_are_told_from_the_tensors_alone(tmp_path, kind):
    folder = pico.save(tmp_path / "m")
    shutil.copytree(folder, tmp_path / "full")
    swap(folder, FORMATS[kind])
    for settings in ({}, {"stream": True}, {"dequantize": True}):
        with pytest.raises(UnrefuseError, match=r"quantised \(model\.l.*name the model") as caught:
            load_model(pico.run_config(str(folder), **settings))
        assert "\n" not in str(caught.value)
    with pytest.raises(UnrefuseError, match="are quantised"):
        difference(tmp_path / "full", folder)


def test_rounded_weights_in_a_pickle_are_told_too(tmp_path):
    folder = pico.save(tmp_path / "m")
    swap(folder, FORMATS["int8"])
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnrefuseError, match="are quantised"):
        load_model(pico.run_config(str(folder), allow_pickle=True))


def test_the_file_of_modelopt_and_configs_of_parts_are_read(tmp_path):
    folder = pico.save(tmp_path / "m")
    config = pico.run_config(str(folder))
    told = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(told))
    with pytest.raises(UnrefuseError, match=r"quantised \(NVFP4\)"):
        check_checkpoint(folder, config)
    told["quantization"] = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    (folder / "hf_quant_config.json").write_text(json.dumps(told))
    check_checkpoint(folder, config)
    (folder / "hf_quant_config.json").write_text("{")
    with pytest.raises(UnrefuseError, match=r"cannot read .*hf_quant_config\.json"):
        check_checkpoint(folder, config)
    (folder / "hf_quant_config.json").unlink()
    found = json.loads((folder / "config.json").read_text())
    found["text_config"] = {"quantization_config": {"quant_method": "awq"}}
    (folder / "config.json").write_text(json.dumps(found))
    with pytest.raises(UnrefuseError, match=r"quantised \(awq\)"):
        check_checkpoint(folder, config)


def test_buffers_and_scales_of_a_cache_are_no_rounded_weights(tmp_path):
    folder = pico.save(tmp_path / "m")
    attention = "model.layers.1.self_attn"
    file = folder / "model.safetensors"
    more = {
        f"{attention}.bias": torch.ones(1, 1, 9, 9, dtype=torch.uint8),  # a causal mask, in GPT-2
        f"{attention}.k_proj.k_scale": SCALE,
        "model.position_ids": torch.ones(1, 9, dtype=torch.int32),
        "model.rotary.inv_freq": torch.ones(4),
        "logit_scale": torch.ones(()),
    }
    save_file(load_file(file) | more, file, metadata={"format": "pt"})
    assert load_model(pico.run_config(str(folder))).layers == 3


def test_a_kind_that_can_be_undone_is_not_where_scales_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("unrefuse.models.cache.user_cache_path", lambda name: tmp_path / "cache")
    folder = pico.save(tmp_path / "m")
    to_fp8(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{WEIGHT}_scale"] = tensors.pop(f"{WEIGHT}_scale_inv")
    rewrite(folder, tensors, FP8_CONFIG)
    with pytest.raises(UnrefuseError, match=r"quantised \(fp8\).*name the model it was made of"):
        load_model(pico.run_config(str(folder), dequantize=True))


def test_a_full_copy_keeps_all_files_and_is_made_of_the_chosen_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("unrefuse.models.cache.user_cache_path", lambda name: tmp_path / "cache")
    folder = pico.save(tmp_path / "m")
    full = to_fp8(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("x")
    settings = json.loads((folder / "generation_config.json").read_text()) | {"top_k": 7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    index = {
        "weight_map": dict.fromkeys(
            load_file(folder / "weights.safetensors"), "weights.safetensors"
        )
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    pico.network(seed=5).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    copy = find_checkpoint(pico.run_config(str(folder), dequantize=True))
    stored = load_file(copy / "model.safetensors")
    torch.testing.assert_close(stored[WEIGHT].float(), full[WEIGHT], rtol=1e-6, atol=0)
    assert (copy / "additional_chat_templates" / "rag.jinja").read_text() == "x"
    assert json.loads((copy / "generation_config.json").read_text())["top_k"] == 7
    assert not (copy / "model.safetensors.index.json").exists()

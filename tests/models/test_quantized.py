"""Quantised checkpoints are refused, or edited as a full copy; real FP8 and MXFP4 bytes, no GPU."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico
from unrefuse.errors import UsageError
from unrefuse.models import quantized
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
    monkeypatch.setattr(quantized, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setitem(
        pico.OPTIONS, "gpt_oss", pico.OPTIONS["gpt_oss"] | {"intermediate_size": 64}
    )
    monkeypatch.setitem(pico.OPTIONS, "qwen3_moe", pico.MOE | {"moe_intermediate_size": 32})
    folder = pico.save(tmp_path / "m", model_type)
    full = quantize(folder)
    with pytest.raises(UsageError, match="an edit needs full weights: add --dequantize"):
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
    monkeypatch.setattr(quantized, "user_cache_path", lambda name: tmp_path / "cache")
    folder = pico.save(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    for settings in ({}, {"dequantize": True}):
        rewrite(folder, tensors, {"quant_method": "gptq", "bits": 4})
        with pytest.raises(UsageError, match=r"quantised \(gptq\).*name the model it was made of"):
            load_model(pico.run_config(str(folder), **settings))
    rewrite(folder, {n: t for n, t in tensors.items() if "layers.1" not in n}, FP8_CONFIG)
    with pytest.raises(UsageError, match=r"has no model\.layers\.1\."):
        load_model(pico.run_config(str(folder), dequantize=True))
    assert not list((tmp_path / "cache").iterdir())


def test_full_weights_are_taken_as_they_are(tmp_path):
    folder = pico.save(tmp_path / "m")
    assert find_checkpoint(pico.run_config(str(folder), dequantize=True)) == folder

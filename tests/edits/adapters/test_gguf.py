import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tests import pico
from tests.edits.plans import KINDS, one_direction, selective
from unrefuse.edits.adapters.gguf import ARCHITECTURES, save_control_vector, save_gguf_lora
from unrefuse.edits.adapters.lora import checkpoint_adapter
from unrefuse.edits.weights import edit_tensor
from unrefuse.errors import UnrefuseError


def read(file):
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("make", KINDS)
def test_the_gguf_adapter_holds_the_factors_under_llama_cpp_names(tmp_path, make):
    network = pico.network("qwen2")
    network.save_pretrained(tmp_path / "m")
    adapter = checkpoint_adapter(tmp_path / "m", make(network))
    save_gguf_lora(adapter, network.config, tmp_path / "lora.gguf")
    fields, tensors = read(tmp_path / "lora.gguf")
    assert fields["general.architecture"] == "qwen2"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    # llama.cpp computes y + b (a x), which is the edited weights' y.
    plan, x = make(network), torch.randn(5, 48)
    for edit in plan:
        a, b = adapter.factors[edit.module]
        linear = network.get_submodule(edit.module)
        z = x[:, : a.shape[1]]
        wanted = edit_tensor(linear.weight, edit) @ z.T
        torch.testing.assert_close(linear(z).T + b @ (a @ z.T), wanted, rtol=1e-4, atol=1e-4)
    names = {"self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
    wanted = set()
    for module, (a, b) in adapter.factors.items():
        layer, path = module.removeprefix("model.layers.").split(".", 1)
        name = f"blk.{layer}.{names[path]}.weight"
        wanted |= {f"{name}.lora_a", f"{name}.lora_b"}
        stored_a, stored_b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        # ne, which llama.cpp checks: a is d_in x rank, b is rank x d_model.
        assert stored_a.shape.tolist() == [a.shape[1], a.shape[0]]
        assert stored_b.shape.tolist() == [b.shape[1], b.shape[0]]
        assert stored_a.tensor_type == stored_b.tensor_type == gguf.GGMLQuantizationType.F32
        rank = stored_b.shape[0]
        assert fields["adapter.lora.alpha"] / rank == 1  # llama.cpp's factor
        np.testing.assert_array_equal(stored_a.data, a.numpy())
        np.testing.assert_array_equal(stored_b.data, b.numpy())
    assert tensors.keys() == wanted


@pytest.mark.parametrize(
    ("make", "names"), [(one_direction, ("attn_output", "ffn_down")), (selective, ("attn_output",))]
)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_named_architecture_has_its_tensors_in_gguf(tmp_path, model_type, make, names):
    network = pico.network(model_type)
    network.save_pretrained(tmp_path / "m")
    adapter = checkpoint_adapter(tmp_path / "m", make(network, (1.0, 1.0, 1.0)))
    save_gguf_lora(adapter, network.config, tmp_path / "lora.gguf")
    fields, tensors = read(tmp_path / "lora.gguf")
    assert fields["general.architecture"] in gguf.MODEL_ARCH_NAMES.values()
    assert {name.split(".", 2)[2] for name in tensors} == {
        f"{name}.weight.lora_{x}" for name in names for x in "ab"
    }


def test_the_control_vector_is_what_llama_cpp_reads(tmp_path):
    vectors = torch.randn(3, 32, dtype=torch.float64)
    save_control_vector(vectors, pico.network("mistral").config, tmp_path / "v.gguf")
    fields, tensors = read(tmp_path / "v.gguf")
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    assert list(tensors) == ["direction.1", "direction.2"]  # never a direction.0
    for layer in (1, 2):
        tensor = tensors[f"direction.{layer}"]
        assert tensor.shape.tolist() == [32]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(tensor.data, vectors[layer].float().numpy())


def test_an_architecture_without_a_gguf_form_is_refused(tmp_path):
    config = AutoConfig.for_model("gpt2")
    with pytest.raises(UnrefuseError, match="does not support the architecture 'gpt2'"):
        save_gguf_lora({}, config, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []

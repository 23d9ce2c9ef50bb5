import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import pico
from tests.edit.plans import KINDS, one_direction
from unrefuse.edit.plan import MatrixEdit
from unrefuse.edit.recipe import OF_THE_EDIT
from unrefuse.edit.shards import write_checkpoint
from unrefuse.edit.weights import edit_model, edit_tensor
from unrefuse.errors import UsageError


def all_tensors(folder):
    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


@pytest.mark.parametrize("make", KINDS)
def test_only_planned_tensors_change_in_a_sharded_checkpoint(tmp_path, make):
    network = pico.network().to(torch.bfloat16)
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    network.save_pretrained(source, max_shard_size="20KB")
    pico.tokenizer().save_pretrained(source)
    for name in OF_THE_EDIT:
        (source / name).write_text("the original's")
    plan = make(network)
    assert write_checkpoint(source, plan, out) == torch.bfloat16

    edits = {f"{edit.module}.weight": edit for edit in plan}
    before, after = all_tensors(source), all_tensors(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        wanted = edit_tensor(tensor, edits[name]) if name in edits else tensor
        assert torch.equal(after[name], wanted)
    for file in source.iterdir():
        if file.name in OF_THE_EDIT:
            assert not (out / file.name).exists()
        elif file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes()
    AutoModelForCausalLM.from_pretrained(out)


def test_a_tensor_that_is_not_there(tmp_path):
    source, out = pico.save(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageError, match=r"no tensor model\.nothing\.weight"):
        write_checkpoint(
            source, (MatrixEdit("model.nothing", torch.ones(32, 1), torch.ones(1, 32)),), out
        )


def test_a_pickle_checkpoint_in_shards_becomes_safetensors_with_an_index(tmp_path):
    network = pico.network()
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    network.config.save_pretrained(source)
    tensors = network.state_dict()
    names = sorted(tensors)
    where = {n: f"pytorch_model-0000{1 + (n in names[9:])}-of-00002.bin" for n in names}
    for file in set(where.values()):
        torch.save({n: tensors[n] for n in names if where[n] == file}, source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    plan = one_direction(network, (1.0, 0.0, 0.0))
    write_checkpoint(source, plan, out)

    assert not list(out.glob("*.bin*"))
    edit_model(network, plan)
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())

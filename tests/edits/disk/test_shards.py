import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import pico
from tests.edits.plans import KINDS, edit_model, one_direction
from unrefuse.edits.disk.copying import head_start
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.disk.verify import check_written
from unrefuse.edits.plan import MatrixEdit
from unrefuse.edits.weights import edit_tensor
from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import OF_AN_EDIT, checkpoint_files
from unrefuse.models.load import load_model


def all_tensors(folder):
    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


@pytest.mark.parametrize("make", KINDS)
def test_only_planned_tensors_change_in_a_sharded_checkpoint(tmp_path, make):
    network = pico.network().to(torch.bfloat16)
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    network.save_pretrained(source, max_shard_size="20KB")
    pico.tokenizer().save_pretrained(source)
    for name in OF_AN_EDIT:
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
        if file.name in OF_AN_EDIT:
            assert not (out / file.name).exists()
        elif file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes()
    AutoModelForCausalLM.from_pretrained(out)


def test_a_tensor_that_is_not_there(tmp_path):
    source, out = pico.save(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UnrefuseError, match=r"no tensor model\.nothing\.weight"):
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


def in_place(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_shards_in_folders_keep_their_places(tmp_path, link, early):
    source, out = pico.save(tmp_path / "m", max_shard_size="60KB"), tmp_path / "out"
    pico.in_folders(source)
    out.mkdir()
    network = pico.network()
    plan = one_direction(network)
    files = [] if link or not early else checkpoint_files(source)
    with head_start(source, files, out) as begun:
        write_checkpoint(source, plan, out, link=link, copied=begun.stop())
    before, after = in_place(source), in_place(out)
    assert before.keys() == after.keys()
    changed = {name for name, content in before.items() if after[name] != content}
    assert changed
    assert all(name.suffix == ".safetensors" for name in changed)
    assert check_written(source, out, plan) == []
    edit_model(network, plan)
    loaded = load_model(pico.run_config(str(out))).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


def test_pickled_shards_in_folders_keep_their_places(tmp_path):
    network = pico.network()
    source, out = tmp_path / "m", tmp_path / "out"
    out.mkdir()
    network.config.save_pretrained(source)
    names = sorted(network.state_dict())
    where = {n: f"part{int(n in names[9:])}/pytorch_model.bin" for n in names}
    for file in set(where.values()):
        (source / file).parent.mkdir()
        held = {n: network.state_dict()[n] for n in names if where[n] == file}
        torch.save(held, source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    plan = one_direction(network)
    write_checkpoint(source, plan, out)
    assert {file.as_posix() for file in in_place(out)} == {
        *("config.json", "model.safetensors.index.json"),
        *("part0/model.safetensors", "part1/model.safetensors"),
    }
    assert check_written(source, out, plan) == []


def test_all_files_of_the_folder_are_copied_or_named(tmp_path, capsys):
    source, out = pico.save(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    kept = ["LICENSE", "additional_chat_templates/rag.jinja", "original/params.json", "a/b/c.txt"]
    left = ["original/consolidated.00.pth", "pytorch_model.bin", "onnx/model.onnx", "m.Q4.GGUF"]
    edits = ["README.md", "run.json", "result.png", "tuning/plan.safetensors", "tuning/kernel.json"]
    hidden = [".git/config", ".cache/huggingface/x.json"]
    for name in (*kept, *left, *edits, *hidden):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "logs").symlink_to(tmp_path)
    write_checkpoint(source, one_direction(pico.network()), out)
    every = {file.as_posix() for file in in_place(source)}
    assert {file.as_posix() for file in in_place(out)} == every - {*left, *edits, *hidden}
    told = capsys.readouterr().err
    assert "not copied" in told
    assert "and 2 more" in told

"""Which files are the model, whether they are whole, and that all of unrefuse says the same."""

import argparse
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico
from tests.edits.plans import one_direction
from unrefuse.edits.difference import difference
from unrefuse.edits.disk.header import fingerprint
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.engine.generate import last_logits
from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import (
    check_checkpoint,
    checkpoint_files,
    checkpoint_hash,
    checkpoint_tensors,
)
from unrefuse.models.header import read_header
from unrefuse.models.load import load_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"
INDEX = "model.safetensors.index.json"


def check(folder, **settings):
    return check_checkpoint(folder, pico.run_config(str(folder), **settings))


def logits(folder, **settings):
    model = load_model(pico.run_config(str(folder), batch_size=2, **settings))
    return last_logits(model, ["Hi", "What is a volcano?"])


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def sharded(tmp_path):
    """A model in shards with an index, each tensor of which is where it says."""
    return pico.save(tmp_path / "m", max_shard_size="60KB")


def to_pickles(folder):
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    for file in set(where.values()):
        torch.save(load_file(folder / file), folder / file.replace(".safetensors", ".bin"))
        (folder / file).unlink()
    (folder / INDEX).unlink()
    renamed = {name: file.replace(".safetensors", ".bin") for name, file in where.items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": renamed}))


@pytest.mark.parametrize("pickled", [False, True])
def test_a_stray_single_file_beside_an_index_is_nobodys_model(sharded, tmp_path, capsys, pickled):
    plain, hashed = logits(sharded), checkpoint_hash(sharded)
    if pickled:
        to_pickles(sharded)
        hashed = checkpoint_hash(sharded)
        torch.save(pico.network(seed=5).state_dict(), sharded / "pytorch_model.bin")
    else:
        whole = fingerprint(checkpoint_files(sharded))
        pico.network(seed=5).save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "model.safetensors", sharded)
        assert fingerprint(checkpoint_files(sharded)) == whole
        assert torch.equal(logits(sharded, stream=True), plain)
    assert checkpoint_hash(sharded) == hashed
    assert torch.equal(logits(sharded, allow_pickle=True), plain)
    assert "is not used" in capsys.readouterr().err

    out = tmp_path / "out"
    out.mkdir()
    plan = one_direction(pico.network())
    write_checkpoint(sharded, plan, out)
    assert not (out / "model.safetensors").exists()
    assert not list(out.glob("*.bin*"))
    assert "not copied" in capsys.readouterr().err
    if not pickled:
        assert {c.name for c in difference(sharded, out).changed} == {
            f"{edit.module}.weight" for edit in plan
        }
    assert not torch.equal(logits(out), plain)


def test_the_weights_that_a_config_names_are_the_model(tmp_path):
    folder = pico.save(tmp_path / "m")
    pico.network(seed=5).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder / "newer.safetensors")
    before = logits(folder)
    change(folder / "config.json", transformers_weights="newer.safetensors")
    assert checkpoint_files(folder) == [folder / "newer.safetensors"]
    assert not torch.equal(logits(folder), before)
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(folder, one_direction(pico.network()), out)
    assert [file.name for file in out.glob("*.safetensors")] == ["newer.safetensors"]
    change(folder / "config.json", transformers_weights="gone.safetensors")
    with pytest.raises(UnrefuseError, match=r"gone\.safetensors is missing"):
        check(folder)


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    folder = pico.save(tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UnrefuseError, match="holds an adapter beside the weights"):
        check(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UnrefuseError, match="is an adapter"):
        check(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("../m.safetensors", "/etc/m.safetensors", "a/../../m.safetensors", "C:/m.safetensors"),
        *("..\\m.safetensors", "a\0.safetensors", "", ".", "config.json", "model.bin", 3, None),
    ],
)
def test_an_index_that_leads_elsewhere_is_one_line(sharded, tmp_path, name):
    shutil.copy(next(sharded.glob("*.safetensors")), tmp_path / "m.safetensors")
    where = json.loads((sharded / INDEX).read_text())["weight_map"]
    change(sharded / INDEX, weight_map=where | {"model.norm.weight": name})
    for act in (check, checkpoint_files, checkpoint_hash, lambda f: difference(f, f)):
        with pytest.raises(UnrefuseError, match=r"outside of its folder|of another kind") as caught:
            act(sharded)
        assert "\n" not in str(caught.value)
    change(sharded / "config.json", transformers_weights=name or "")
    with pytest.raises(UnrefuseError, match=r"outside of its folder|of another kind"):
        checkpoint_files(sharded)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": []}}',
              "[" * 100_000, "\ufeff{", POINTER, '{"weight_map": 3}']
)  # fmt: skip
def test_a_damaged_index_is_one_line(sharded, index):
    (sharded / INDEX).write_text(index, encoding="utf-8")
    says = r"is damaged|git lfs pull|a JSON object|outside of its folder|recursion|byte order mark"
    with pytest.raises(UnrefuseError, match=says) as caught:
        check(sharded)
    assert "\n" not in str(caught.value)


def test_an_index_needs_no_metadata(sharded):
    plain = logits(sharded)
    where = json.loads((sharded / INDEX).read_text())["weight_map"]
    (sharded / INDEX).write_text(json.dumps({"weight_map": where}))
    assert torch.equal(logits(sharded), plain)


def test_an_index_and_its_shards_say_the_same(sharded):
    found = json.loads((sharded / INDEX).read_text())["weight_map"]
    one, other = sorted(set(found.values()))[:2]
    change(sharded / INDEX, weight_map=found | {"model.extra.weight": one})
    with pytest.raises(UnrefuseError, match=rf"says that model\.extra\.weight is in {one}"):
        check(sharded)
    change(sharded / INDEX, weight_map=found)
    name = next(name for name, file in found.items() if file == one)
    save_file(
        load_file(sharded / other) | {name: torch.zeros(2)}, sharded / other, {"format": "pt"}
    )
    for act in (check, checkpoint_tensors, lambda folder: difference(folder, folder)):
        with pytest.raises(UnrefuseError, match="programs differ in which one they read"):
            act(sharded)
    (sharded / other).unlink()
    with pytest.raises(UnrefuseError, match=rf"{other} is missing"):
        check(sharded)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "a/extra.json"]
)
def test_a_pointer_of_git_lfs_in_place_of_a_file_is_named(tmp_path, name):
    folder = pico.save(tmp_path / "m")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(POINTER)
    with pytest.raises(UnrefuseError, match=rf"{name} is a Git LFS pointer"):
        check(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "a/b.txt"])
def test_a_link_of_a_cache_that_leads_nowhere_is_named(tmp_path, name):
    folder, blobs = pico.save(tmp_path / "m"), tmp_path / "blobs"
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(f"../blobs/{file.name}")
    check(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/gone")
    with pytest.raises(UnrefuseError, match=name):
        check(folder)


def cut(file, tensors):
    torch.save(tensors, file)
    file.write_bytes(file.read_bytes()[:-2000])


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        lambda file, tensors: file.write_bytes(b""),
        lambda file, tensors: file.write_text(POINTER),
        lambda file, tensors: file.write_bytes(b"\x80\x02garbage" * 99),
        lambda file, tensors: torch.save(tensors | {"args": argparse.Namespace(lr=1)}, file),
        lambda file, tensors: torch.save({"state_dict": tensors}, file),
        lambda file, tensors: torch.save(tensors | {"step": 3}, file),
        lambda file, tensors: torch.save(list(tensors.values()), file),
        lambda file, tensors: torch.save(tensors | {0: torch.ones(1)}, file),
    ],
)
def test_a_broken_pickle_is_one_line(tmp_path, spoil):
    folder = pico.save(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    spoil(folder / "pytorch_model.bin", tensors)
    for act in (
        lambda: check(folder, allow_pickle=True),
        lambda: logits(folder, allow_pickle=True),
    ):
        with pytest.raises(UnrefuseError, match=r"pytorch_model\.bin") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_pickle_is_not_opened_before_it_is_allowed(tmp_path, monkeypatch):
    folder = pico.save(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("opened"))
    for settings in ({}, {"dequantize": True}):
        with pytest.raises(UnrefuseError, match="--allow-pickle"):
            load_model(pico.run_config(str(folder), **settings))


def test_weights_of_another_kind_are_named(tmp_path):
    folder = pico.save(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(UnrefuseError, match=r"no weights .* only consolidated\.safetensors"):
        check(folder)


@pytest.mark.parametrize("stored", [True, False])
def test_tied_weights_load_whether_stored_once_or_twice(tmp_path, stored):
    network = pico.network()
    network.config.tie_word_embeddings = True
    network.lm_head.weight = network.model.embed_tokens.weight
    folder = tmp_path / "m"
    network.save_pretrained(folder)
    pico.tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()} if stored else {}
    save_file(tensors | head, folder / "model.safetensors", {"format": "pt"})
    wanted = network(torch.tensor([[3, 4, 5]])).logits
    for stream in (False, True):
        loaded = load_model(pico.run_config(str(folder), stream=stream)).network
        torch.testing.assert_close(loaded(torch.tensor([[3, 4, 5]])).logits, wanted)


def test_the_end_of_turn_is_known_without_generation_settings(tmp_path):
    folder = pico.save(tmp_path / "m")
    ends = []
    for name in ("generation_config.json", None):
        network = load_model(pico.run_config(str(folder))).network
        ends.append(network.generation_config.eos_token_id)
        if name:
            (folder / name).unlink()
    assert ends[0] == ends[1] is not None


def test_a_header_with_a_name_twice_is_damaged(tmp_path):
    file = tmp_path / "x.safetensors"
    a, b = (f'"a":{{"dtype":"{d}","shape":[1],"data_offsets":[0,4]}}' for d in ("F32", "I32"))
    header = f"{{{a},{b}}}".encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UnrefuseError, match=r"truncated or damaged.*twice"):
        read_header(file)

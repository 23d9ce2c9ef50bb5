import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tests import pico
from tests.edits.plans import KINDS, one_direction, selective
from unrefuse.edits.adapters.lora import checkpoint_adapter, save_adapter
from unrefuse.edits.adapters.revert import largest_difference, revert_checkpoint
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.plan import save_plan, scaled
from unrefuse.errors import UnrefuseError


def all_tensors(folder):
    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


def prepare(tmp_path, make=one_direction, dtype=torch.float32, scale=1.0, **options):
    """An original, its edit on disk, and the adapter of the edit at `scale`; the plan."""
    network = pico.network().to(dtype)
    network.save_pretrained(tmp_path / "m", **options)
    pico.tokenizer().save_pretrained(tmp_path / "m")
    plan = make(network)
    for name in ("edited", "lora", "back"):
        (tmp_path / name).mkdir()
    write_checkpoint(tmp_path / "m", plan, tmp_path / "edited")
    adapter = checkpoint_adapter(tmp_path / "m", scaled(plan, scale))
    save_adapter(adapter, tmp_path / "lora")
    told = {"along": json.dumps(adapter.along)}
    save_plan(scaled(plan, scale), tmp_path / "lora" / "plan.safetensors", told)
    return plan


full = partial(one_direction, weights=(1.0, 1.0, 1.0))


def steep(network):
    """Some entries become far larger than the weights, as where a model's states are uneven."""
    plan = selective(network)
    return tuple(replace(e, write=9 * peaks(e.write), read=peaks(e.read)) for e in plan)


def peaks(rows):
    return rows**5 / rows.norm() ** 4 * 10


def gentle(network):
    """Most of what is added is less than a unit of bfloat16."""
    return scaled(selective(network), 0.003)


@pytest.mark.parametrize("make", [one_direction, full, selective, steep, gentle])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_original_comes_back_within_rounding(tmp_path, make, dtype):
    prepare(tmp_path, make, dtype, max_shard_size="20KB")
    (tmp_path / "edited" / "README.md").write_text("the edit's card")
    names = revert_checkpoint(tmp_path / "edited", tmp_path / "lora", tmp_path / "back")
    before, edited, after = (all_tensors(tmp_path / name) for name in ("m", "edited", "back"))
    assert before.keys() == after.keys()
    assert set(names) == {n for n in before if not torch.equal(before[n], edited[n])}
    eps = torch.finfo(dtype).eps
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        if name not in names:
            assert torch.equal(after[name], tensor)
        largest = max(float(tensor.abs().max()), float(edited[name].abs().max()))
        assert (after[name].float() - tensor.float()).abs().max() <= 4 * eps * largest
    assert not (tmp_path / "back" / "README.md").exists()
    assert (tmp_path / "back" / "tokenizer.json").exists()
    largest, equal = largest_difference(tmp_path / "back", tmp_path / "m", names)
    off = torch.cat([(after[name] - before[name]).float().flatten() for name in names])
    assert largest == off.abs().max()
    assert equal == pytest.approx(float((off == 0).float().mean()))
    assert equal > 0.5 or dtype == torch.float32


def test_shards_in_folders_keep_their_places(tmp_path):
    prepare(tmp_path, max_shard_size="60KB")
    pico.in_folders(tmp_path / "edited")
    names = revert_checkpoint(tmp_path / "edited", tmp_path / "lora", tmp_path / "back")
    before, after = (sorted((tmp_path / n).rglob("w.safetensors")) for n in ("edited", "back"))
    assert [f.relative_to(tmp_path / "back") for f in after] == [
        f.relative_to(tmp_path / "edited") for f in before
    ]
    assert largest_difference(tmp_path / "back", tmp_path / "m", names)[0] < 1e-6


@pytest.mark.parametrize("make", KINDS)
def test_a_checkpoint_without_this_edit_is_refused(tmp_path, make):
    prepare(tmp_path, make, dtype=torch.bfloat16)
    other = pico.network(seed=1).bfloat16()
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "edited other").mkdir()
    write_checkpoint(tmp_path / "other", make(other), tmp_path / "edited other")
    for name in ("m", "other", "edited other"):
        with pytest.raises(UnrefuseError, match="does not hold the edit of"):
            revert_checkpoint(tmp_path / name, tmp_path / "lora", tmp_path / "back")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("scale", [0.5, 0.9, 1.5])
def test_an_adapter_of_another_strength_is_refused(tmp_path, make, scale):
    prepare(tmp_path, make, dtype=torch.bfloat16, scale=scale)
    with pytest.raises(UnrefuseError, match="at this strength"):
        revert_checkpoint(tmp_path / "edited", tmp_path / "lora", tmp_path / "back")


def test_an_adapter_that_does_not_say_how_far_the_original_lies_along_it_is_refused(tmp_path):
    plan = prepare(tmp_path)
    save_plan(plan, tmp_path / "lora" / "plan.safetensors", {})
    with pytest.raises(UnrefuseError, match="does not record the original"):
        revert_checkpoint(tmp_path / "edited", tmp_path / "lora", tmp_path / "back")


def test_what_is_no_adapter_or_has_no_plan_is_refused(tmp_path):
    prepare(tmp_path)
    with pytest.raises(UnrefuseError, match="no adapter of `unrefuse export --lora`"):
        revert_checkpoint(tmp_path / "edited", tmp_path / "m", tmp_path / "back")
    (tmp_path / "lora" / "plan.safetensors").unlink()
    with pytest.raises(UnrefuseError, match="no plan in"):
        revert_checkpoint(tmp_path / "edited", tmp_path / "lora", tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []

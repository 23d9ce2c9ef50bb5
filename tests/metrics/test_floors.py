"""No edit is written of a plan that was not measured above the floors: just this one, on just these
weights, in just this form."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests import pico
from tests.edits.plans import edit_model, one_direction, record, save_measured
from unrefuse.edits.plan import load_plan, save_plan, scaled
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.export import export_plan
from unrefuse.jobs.save import apply_plan
from unrefuse.metrics.floors import Kept, read_measured, retains
from unrefuse.metrics.statistics import share_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pico.save(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def plan():
    return one_direction(pico.network())


def kept(kept, n):
    return {"kept": kept, "n": n}


@pytest.mark.parametrize(
    ("spoiled", "says"),
    [
        ({"retention": kept(56, 60)}, r"below a floor \(still refused: 56 of 60 keep prompts"),
        ({"retention": kept(28, 28), "shipped": kept(0, 0)}, "below a floor"),  # shows 0.899
        ({"retention": kept(0, 0), "shipped": kept(0, 0)}, "below a floor"),
        ({"retention": kept(61, 60)}, "below a floor"),
        ({"retention": kept(990, 1000), "shipped": kept(50, 60)}, "and 50 of 60 shipped ones"),
        ({"retention": kept(100, 100), "shipped": kept(27, 28)}, "and 27 of 28 shipped ones"),
        ({"quality": 0.69}, "quality 0.69"),
        ({"quality_low": 0.59}, "below a floor"),
        ({"quality": float("nan")}, r"is damaged \(quality"),
        ({"quality": None}, "is damaged .*quality"),
        ({"retention": kept(float("nan"), 60)}, "is damaged .*retention.kept"),
        ({"retention": kept(-1, 60)}, "is damaged .*retention.kept"),
        ({"retention": kept(60, 60.5)}, "is damaged .*retention.n"),
        ({"retention": kept("60", 60)}, "is damaged .*retention.kept"),
        ({"retention": kept(10**12, 10**12)}, "is damaged .*retention.kept"),
        ({"retention_floor": 0.5, "retention": kept(40, 60)}, "is damaged .*retention_floor"),
        ({"retention_bound": 0.0, "retention": kept(3, 3)}, "is damaged .*retention_bound"),
        ({"retention_bound": float("nan")}, "is damaged .*retention_bound"),
        ({"quality_floor": float("-inf")}, "is damaged .*quality_floor"),
        ({"split": "search"}, "is damaged .*split"),
        ({"reply_tokens": 99}, "is damaged .*reply_tokens"),
        ({"preserve_norm": "no"}, "is damaged .*preserve_norm"),
        ({"judge": "mine"}, "is damaged .*judge"),
        ({"plan_sha256": "0" * 64}, "is not the one that was measured"),
        ({"preserve_norm": True}, "with --preserve-norm, which no adapter can hold"),
    ],
)
def test_a_record_that_shows_too_little_is_refused(model, plan, tmp_path, spoiled, says):
    file = tmp_path / "plan.safetensors"
    save_measured(plan, file, model)
    assert read_measured(file, model).scale == 1
    save_measured(plan, file, model, **spoiled)
    with pytest.raises(UnrefuseError, match=says) as told:
        read_measured(file, model)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "true", "{}", '{"split": "test"}'])
def test_a_record_that_is_none_is_refused(model, plan, tmp_path, text):
    file = tmp_path / "plan.safetensors"
    save_measured(plan, file, model)
    metadata = load_plan(file)[1]
    metadata.pop("measured")
    save_plan(plan, file, metadata | ({} if text is None else {"measured": text}))
    with pytest.raises(UnrefuseError, match=r"has no record of a measurement|is damaged"):
        read_measured(file, model)


def test_the_record_of_one_plan_says_nothing_of_another(model, plan, tmp_path):
    file = tmp_path / "plan.safetensors"
    save_measured(plan, file, model)
    metadata = load_plan(file)[1]
    others = (
        scaled(plan, 1.5),
        plan[:-1],
        plan[::-1],
        (replace(plan[0], module=plan[1].module), *plan[2:]),
        tuple(replace(edit, of_output=False) for edit in plan),
    )
    for other in others:
        save_plan(other, file, metadata)
        with pytest.raises(UnrefuseError, match="is not the one that was measured"):
            read_measured(file, model)


def test_the_same_weights_in_other_shards_are_known_and_in_another_precision_not(
    model, plan, tmp_path
):
    file = tmp_path / "plan.safetensors"
    save_measured(plan, file, model)
    network = pico.network()
    network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert len(read_measured(file, tmp_path / "shards").plan) == len(plan)
    network.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for other in (tmp_path / "half", pico.save(tmp_path / "trained", layers=4)):
        with pytest.raises(UnrefuseError, match=r"made for other weights \(some/model\)"):
            read_measured(file, other)


def writers(run, model, tmp_path, config):
    """Every form that is written of a plan, and where."""
    out = tmp_path / "out"
    yield out, lambda: apply_plan(run, config.model_copy(update={"out": out}))
    yield out, lambda: apply_plan(run, config.model_copy(update={"out": out}), link=True)
    for form in ("lora", "gguf_lora", "control_vector"):
        yield out, lambda form=form: export_plan(run, config, **{form: out})
        yield out, lambda form=form: export_plan(run, config, **{form: out}, scale=0.1)


def test_no_form_is_written_of_a_plan_without_its_record(model, plan, tmp_path):
    run, measured = tmp_path / "plan.safetensors", record(plan)
    config = pico.run_config(str(model))
    save_measured(plan, run, model)
    metadata = load_plan(run)[1]
    for spoiled in ("", json.dumps(measured | {"retention": kept(30, 60)})):
        save_plan(plan, run, metadata | {"measured": spoiled})
        for out, write in writers(run, model, tmp_path, config):
            with pytest.raises(UnrefuseError, match=r"record of the measurement|below a floor"):
                write()
            assert not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]


def test_an_adapter_keeps_the_record_and_its_share_of_the_strength(model, plan, tmp_path):
    run, lora = tmp_path / "plan.safetensors", tmp_path / "lora"
    config = pico.run_config(str(model))
    save_measured(plan, run, model)
    assert export_plan(run, config, lora=lora, scale=0.5)["scale"] == 0.5
    assert export_plan(run, config, gguf_lora=tmp_path / "a.gguf", scale=0)["scale"] == 0
    again = export_plan(lora, config, lora=tmp_path / "again", scale=0.5)
    assert again["scale"] == 0.25
    applied = config.model_copy(update={"out": tmp_path / "out"})
    assert apply_plan(tmp_path / "again", applied)["scale"] == 0.25
    network = pico.network()
    edit_model(network, scaled(plan, 0.25))
    stored, wanted = load_file(tmp_path / "out" / "model.safetensors"), network.state_dict()
    assert all(torch.equal(stored[name], wanted[name]) for name in stored)
    # What lies beside the edited model is the same plan, at the same share.
    assert read_measured(tmp_path / "out", model).scale == 0.25
    with pytest.raises(UnrefuseError, match="name its original"):
        export_plan(tmp_path / "out", config.model_copy(update={"model": str(tmp_path / "out")}),
                    lora=tmp_path / "x")  # fmt: skip

    for scale in ("3", "-1", "nan", "inf", "half", ""):
        save_plan(plan, run, load_plan(run)[1] | {"scale": scale})
        with pytest.raises(UnrefuseError, match="must be between 0 and 1"):
            read_measured(run, model)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.data())
def test_prompts_of_a_users_own_never_outnumber_what_is_lost_of_the_shipped(n, data):
    kept = n - data.draw(st.integers(0, min(n, 15)))
    alone = Kept(kept=kept, n=n)
    diluted = Kept(kept=kept + 3000, n=n + 3000)
    shown = kept / n >= 0.95 and share_of(kept, n).low >= 0.9
    assert retains(diluted, alone, 0.95, 0.9) == (shown or kept == n)
    assert retains(alone, alone, 0.95, 0.9) == shown
    none = Kept(kept=0, n=0)
    assert retains(alone, none, 0.95, 0.9) == shown
    assert not retains(none, none, 0.95, 0.9)

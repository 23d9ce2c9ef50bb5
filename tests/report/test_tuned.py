"""What a tuning leaves can be read back, and only for the weights that it was made for."""

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests import pico
from tests.edits.plans import KINDS
from tests.results import ANSWERED, result
from unrefuse.edits.disk.header import fingerprint
from unrefuse.errors import UnrefuseError
from unrefuse.kernel import Kernel, read_kernel
from unrefuse.metrics.floors import Kept, read_measured
from unrefuse.models.checkpoint import checkpoint_files
from unrefuse.report.tuned import plan_for, record_of, save_tuned
from unrefuse.search.stage import Stage

KERNEL = Kernel("gaussian", (0.0, 0.5, 0.25), "optuna", 0.6, 0.2, 0.1)


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    plan = request.param(pico.network(), KERNEL.weights)
    made = result(out=tmp_path, model="some/model", n=60)
    stage = Stage("trial 0", KERNEL, 0.9, plan, made.measurement, True)
    model = pico.save(tmp_path / "m")
    save_tuned(stage, made, tmp_path, fingerprint(checkpoint_files(model)))
    return tmp_path / "kernel.json", plan, made, model


def test_the_kernel_file_is_one_that_a_run_takes_with_its_plan(saved):
    file, plan, made, model = saved
    kernel = read_kernel(file, 3)
    assert kernel.weights == KERNEL.weights
    record = json.loads(file.read_text())
    assert (record["model"], record["multiplier"], record["peak"]) == ("some/model", 0.9, 0.6)
    assert record["figures"]["split"] == "test"
    found, resolved = plan_for(kernel.plan, made.config, model)
    assert resolved.method == ("ablate" if plan[0].of_output else "selective")
    if not plan[0].of_output:
        lengths = made.config.model_copy(update={"preserve_norm": True})
        with pytest.raises(UnrefuseError, match="--preserve-norm needs the method ablate"):
            plan_for(kernel.plan, lengths, model)
    again = {edit.module: edit for edit in found}
    assert again.keys() == {edit.module for edit in plan}
    for edit in plan:
        other = again[edit.module]
        assert torch.equal(other.write, edit.write)
        assert torch.equal(other.read, edit.read)
        assert replace(other, write=edit.write, read=edit.read) == edit


def test_a_plan_for_other_weights_is_refused_in_one_line(saved):
    file, _, made, model = saved
    plan = read_kernel(file, 3).plan
    other = pico.save(file.parent / "other", layers=2)
    with pytest.raises(
        UnrefuseError, match=r"made for other weights \(some/model\).*the line 'plan'"
    ):
        plan_for(plan, made.config, other)
    plan.write_bytes(b"no plan")
    with pytest.raises(UnrefuseError, match="cannot read the plan"):
        plan_for(plan, made.config, model)


def test_the_record_beside_the_plan_is_that_of_the_measurement(saved):
    file, plan, made, model = saved
    recipe = read_measured(file.parent, model)
    assert recipe.measured == record_of(plan, made)
    assert recipe.measured.retention == Kept(kept=60, n=60)
    assert recipe.measured.quality == made.measurement.quality.value
    config = made.config.model_copy(update={"retention_floor": 0.85, "preserve_norm": True})
    other = record_of(plan, replace(made, config=config))
    assert (other.retention_floor, other.preserve_norm) == (0.85, True)


@pytest.mark.parametrize("unmeasured", [{"split": "search"}, {"config": {"reply_tokens": 8}}])
def test_there_is_no_record_of_a_search_or_of_short_replies(saved, unmeasured):
    _, plan, made, _ = saved
    if "config" in unmeasured:
        unmeasured = {"config": made.config.model_copy(update=unmeasured["config"])}
    with pytest.raises(ValidationError):
        record_of(plan, replace(made, **unmeasured))


def test_the_shipped_keep_prompts_are_counted_by_themselves(saved):
    _, plan, made, _ = saved
    exchanges = [
        replace(e, prompt=replace(e.prompt, source="shipped" if i % 2 else "mine.txt"))
        for i, e in enumerate(made.measurement.exchanges)
    ]
    lost = next(e for e in exchanges if (e.prompt.set, e.prompt.source) == ("keep", "shipped"))
    exchanges[exchanges.index(lost)] = replace(lost, after=ANSWERED)
    found = replace(made.measurement, exchanges=tuple(exchanges))
    assert record_of(plan, replace(made, measurement=found)).shipped == Kept(kept=29, n=30)

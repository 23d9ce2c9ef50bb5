"""What a tuning leaves can be read back, and only for the weights that it was made for."""

import json
from dataclasses import replace

import pytest
import torch

from tests import pico
from tests.edit.plans import KINDS
from tests.results import result
from unrefuse.errors import UsageError
from unrefuse.kernel import Kernel, read_kernel
from unrefuse.report.tuned import plan_for, save_tuned
from unrefuse.search.stage import Stage

KERNEL = Kernel("gaussian", (0.0, 0.5, 0.25), "optuna", 0.6, 0.2, 0.1)


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    plan = request.param(pico.network(), KERNEL.weights)
    made = result(out=tmp_path, model="some/model")
    config = made.config.model_copy(update={"model_sha256": "abc"})
    stage = Stage("trial 0", KERNEL, 0.9, plan, made.measurement, True)
    save_tuned(stage, replace(made, config=config), tmp_path, "f")
    return tmp_path / "kernel.json", plan, config


def test_the_kernel_file_is_one_that_a_run_takes_with_its_plan(saved):
    file, plan, config = saved
    kernel = read_kernel(file, 3)
    assert kernel.weights == KERNEL.weights
    record = json.loads(file.read_text())
    assert (record["model"], record["multiplier"], record["peak"]) == ("some/model", 0.9, 0.6)
    assert record["figures"]["split"] == "test"
    found, resolved = plan_for(kernel.plan, config)
    assert resolved.method == ("ablate" if plan[0].of_output else "selective")
    if not plan[0].of_output:
        lengths = config.model_copy(update={"preserve_norm": True})
        with pytest.raises(UsageError, match="cannot keep the rows' length"):
            plan_for(kernel.plan, lengths)
    again = {edit.module: edit for edit in found}
    assert again.keys() == {edit.module for edit in plan}
    for edit in plan:
        other = again[edit.module]
        assert torch.equal(other.write, edit.write)
        assert torch.equal(other.read, edit.read)
        assert replace(other, write=edit.write, read=edit.read) == edit


def test_a_plan_for_other_weights_is_refused_in_one_line(saved):
    file, _, config = saved
    plan = read_kernel(file, 3).plan
    with pytest.raises(UsageError, match=r"tuned on other weights \(some/model\)"):
        plan_for(plan, config.model_copy(update={"model_sha256": "other"}))
    plan.write_bytes(b"no plan")
    with pytest.raises(UsageError, match="cannot read the plan"):
        plan_for(plan, config)

"""What a tuning leaves can be read back, and only for the weights that it was made for."""

import json
from dataclasses import replace

import pytest
import torch

from tests import pico
from tests.results import result
from unrefuse.edit.plan import make_plan, scaled
from unrefuse.errors import UsageError
from unrefuse.kernel import Kernel, read_kernel
from unrefuse.report.tuned import plan_for, save_tuned
from unrefuse.search.stage import Stage

KERNEL = Kernel("tuned", (0.0, 0.5, 0.25), "gradient", mlp_weights=(0.0, 0.75, 0.1))


@pytest.fixture
def saved(tmp_path):
    directions = torch.nn.functional.normalize(torch.randn(3, 32).double(), dim=-1)
    plan = make_plan(
        pico.network(), directions, KERNEL.weights, 1.0, mlp_weights=KERNEL.mlp_weights
    )
    made = result(out=tmp_path, model="some/model")
    config = made.config.model_copy(update={"model_sha256": "abc"})
    stage = Stage("trial 0", KERNEL, 1.0, plan, made.measurement, True)
    save_tuned(stage, replace(made, config=config), tmp_path, "f")
    return tmp_path / "kernel.json", plan, config


def test_the_kernel_file_is_one_that_a_run_takes_with_its_plan(saved):
    file, plan, config = saved
    kernel = read_kernel(file, 3)
    assert kernel.weights == KERNEL.weights
    assert kernel.mlp_weights == KERNEL.mlp_weights
    assert json.loads(file.read_text())["model"] == "some/model"
    again = {edit.module: edit for edit in plan_for(kernel.plan, config)}
    assert again.keys() == {edit.module for edit in plan}
    for edit in plan:
        assert torch.equal(again[edit.module].core, edit.core)
        assert torch.equal(again[edit.module].basis, edit.basis)


def test_a_plan_for_other_weights_is_refused_in_one_line(saved):
    file, _, config = saved
    plan = read_kernel(file, 3).plan
    with pytest.raises(UsageError, match=r"tuned on other weights \(some/model\)"):
        plan_for(plan, config.model_copy(update={"model_sha256": "other"}))
    plan.write_bytes(b"no plan")
    with pytest.raises(UsageError, match="cannot read the plan"):
        plan_for(plan, config)


def test_a_scaled_plan_takes_out_its_share(saved):
    _, plan, _ = saved
    for a, b in zip(scaled(plan, 0.5), plan, strict=True):
        assert torch.equal(a.core, b.core * 0.5)


@pytest.mark.parametrize(
    "content",
    ['{"weights": [0, 1, 1], "mlp_weights": [1, 1]}', '{"weights": [0, 1, 1], "mlp_weights": "x"}'],
)
def test_bad_weights_of_the_mlp_are_told(tmp_path, content):
    (tmp_path / "k.json").write_text(content)
    with pytest.raises(UsageError, match="kernel file"):
        read_kernel(tmp_path / "k.json", 3)

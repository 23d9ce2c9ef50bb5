"""Every command that writes says first that it can't write there: before it looks for a model."""

import pytest

from tests import pico
from tests.command import unrefuse
from tests.edits.plans import one_direction, save_measured
from tests.jobs.test_save import paths
from unrefuse.edits.recipe import PLAN
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.save import apply_plan

NONE = "/no/such/model"
COMMANDS = {
    "edit": ["edit", NONE, "--out"],
    "edit --tune": ["edit", NONE, "--tune", "optuna", "--out"],
    "tune": ["tune", NONE, "--out"],
    "apply": ["apply", "/no/such/run", NONE, "--out"],
    "export --lora": ["export", "/no/such/run", NONE, "--lora"],
    "export --gguf-lora": ["export", "/no/such/run", NONE, "--gguf-lora"],
    "export --control-vector": ["export", "/no/such/run", NONE, "--control-vector"],
    "revert": ["revert", NONE, "--adapter", NONE, "--out"],
    "evaluate": ["evaluate", NONE, "--out"],
    "evaluate --transcripts": ["evaluate", "--transcripts", NONE, "--out"],
    "analyze --kernel-out": ["analyze", NONE, "--kernel-out"],
    "analyze --plot": ["analyze", NONE, "--plot"],
    "kernel --plot": ["kernel", "--plot"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_written_is_said_first(tmp_path, command):
    paths(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for place, told in {
        "file/x.png": "is a file",
        "dangling/x.png": "is a link to /no/such/disk",
        "n" * 300 + ".png": "File name too long",
    }.items():
        done = unrefuse(*COMMANDS[command], tmp_path / place)
        assert done.returncode == 2
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_no_edited_model_becomes_a_part_of_its_original(tmp_path):
    model = pico.save(tmp_path / "m")
    plan = one_direction(pico.network())
    save_measured(plan, tmp_path / "run" / PLAN, model)
    (tmp_path / "link").symlink_to(model)
    for out in (model / "edited", model / "a" / "b", tmp_path / "link" / "edited"):
        with pytest.raises(UnrefuseError, match="is inside the folder of the model"):
            apply_plan(tmp_path / "run", pico.run_config(str(model), out=out))
    assert not any(file.is_dir() for file in model.iterdir())

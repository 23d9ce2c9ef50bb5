"""A folder as `unrefuse edit` saves it, made in no time: a tiny model with a plan and a record."""

from dataclasses import replace

from tests import pico
from tests.edits.plans import selective
from tests.results import result
from unrefuse.edits.disk.header import fingerprint
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.models.checkpoint import checkpoint_files
from unrefuse.report.card import write_card
from unrefuse.report.results import write_json
from unrefuse.report.seal import write_sums
from unrefuse.report.tuned import save_tuned
from unrefuse.search.stage import Stage


def save(folder, **figures):
    """Makes FOLDER/model, and its edit in FOLDER/edited; returns both."""
    model, out = pico.save(folder / "model"), folder / "edited"
    made = result(out, model=str(model), **{"removal": 0.8, "n": 60} | figures)
    shas = {"model_sha256": "a" * 64, "prompts_sha256": "b" * 64}
    made = replace(made, config=made.config.model_copy(update=shas))
    plan = selective(pico.network())
    stage = Stage("multiplier 0.65", made.kernel, 0.65, plan, made.measurement, True)
    (out / "tuning").mkdir(parents=True)
    write_checkpoint(model, plan, out)
    (out / "result.png").write_bytes(b"\x89PNG")
    write_card(made, out, out)
    write_json(made, out / "run.json")
    save_tuned(stage, made, out / "tuning", fingerprint(checkpoint_files(model)))
    write_sums(out)
    return model, out

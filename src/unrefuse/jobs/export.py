"""The edit in small forms beside the original: adapters, and the control vector of llama.cpp."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.edits.adapters.control import control_vectors
from unrefuse.edits.adapters.gguf import gguf_architecture, save_control_vector, save_gguf_lora
from unrefuse.edits.adapters.lora import checkpoint_adapter, save_adapter
from unrefuse.edits.plan import Plan, save_plan, scaled
from unrefuse.edits.recipe import PLAN, read_plan
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.save import check_new, check_out, new_file, new_folder
from unrefuse.metrics.floors import check_scale, read_measured
from unrefuse.models.checkpoint import check_checkpoint
from unrefuse.models.load import find_checkpoint, load_folder, read_config
from unrefuse.prompts.sets import load_prompts, select


def export_plan(
    run: Path,
    config: RunConfig,
    lora: Path | None = None,
    gguf_lora: Path | None = None,
    control_vector: Path | None = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Writes the edit of `run`, at `scale` times its strength, in every form that is named: a
    folder for a PEFT adapter, files for one in GGUF and for a control vector. `config.model` is the
    original, of whose weights the adapter is made.

    All forms, or none, are written. Returns what `--json` prints; `scale` there counts from the
    edit as it was measured. Raises UnrefuseError, for an edit that was not measured above its
    floors on these weights too: see `measured.read_measured`.
    """
    if not (lora or gguf_lora or control_vector):
        raise UnrefuseError("name a form: --lora DIR, --gguf-lora FILE or --control-vector FILE")
    check_scale(scale, "--scale")
    if lora:
        check_out(lora, "--lora")
    for file in filter(None, (gguf_lora, control_vector)):
        check_new(file)
    read_plan(run)  # before a download
    folder = find_checkpoint(config)
    check_checkpoint(folder, config)
    if folder.resolve() in (run.resolve(), run.resolve().parent):
        raise UnrefuseError(f"{config.model} is the edited model: name its original")
    recipe = read_measured(run, folder)
    if control_vector and not all(edit.of_output for edit in recipe.plan):
        raise UnrefuseError(
            "a control vector acts on every prompt alike, and this edit does not: use --lora or "
            "--gguf-lora"
        )
    network_config = read_config(folder, config)
    if gguf_lora or control_vector:
        gguf_architecture(network_config)
    scale *= recipe.scale
    plan = scaled(recipe.plan, scale)
    written: dict[str, Any] = {"scale": scale, "matrices": len(plan)}
    with ExitStack() as stack:
        if lora or gguf_lora:
            adapter = checkpoint_adapter(folder, plan)
            written["rank"] = adapter.rank
        if gguf_lora:
            save_gguf_lora(adapter, network_config, stack.enter_context(new_file(gguf_lora)))
            written["gguf_lora"] = str(gguf_lora)
        if lora:
            new = stack.enter_context(new_folder(lora))
            save_adapter(adapter, new, config.model)
            # What was measured, how much of it this is, and what `revert` checks against.
            described = {
                "base": config.model,
                "scale": str(scale),
                "along": json.dumps(adapter.along),
            }
            save_plan(recipe.plan, new / PLAN.name, recipe.metadata | described)
            written["lora"] = str(lora)
        if control_vector:
            file = stack.enter_context(new_file(control_vector))
            written |= _control_vector(folder, config, plan, file)
            written["control_vector"] = str(control_vector)
    return written


def _control_vector(folder: Path, config: RunConfig, plan: Plan, file: Path) -> dict[str, Any]:
    prompts = [p.text for p in select(load_prompts(config), "target", "train")]
    model = load_folder(folder, config, config.model)
    vectors = control_vectors(model, plan, prompts)
    save_control_vector(vectors, model.network.config, file)
    lengths = [round(length, 6) for length in vectors.norm(dim=1).tolist()]
    return {"prompts": len(prompts), "lengths": lengths}

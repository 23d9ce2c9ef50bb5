"""Edit an open chat model so that it stops false refusals and goes on with the true ones.

    from unrefuse import RunConfig, run_edit
    result = run_edit(RunConfig(model="demo", out="edited"))

Names are imported when they are first used, so that `import unrefuse` costs nothing.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "RunConfig": "config",
    "KernelConfig": "config",
    "load_config": "config",
    "UnrefuseError": "errors",
    "load_prompts": "prompts.sets",
    "Model": "models.load",
    "load_model": "models.load",
    "group_means": "engine.capture",
    "find_directions": "edits.directions",
    "fit_reader": "edits.readers",
    "load_pairs": "prompts.pairs",
    "Kernel": "kernel",
    "gaussian": "kernel",
    "choose_kernel": "kernel",
    "ablation_plan": "edits.plan",
    "selective_plan": "edits.plan",
    "hooked": "edits.hooks",
    "reply_to": "engine.generate",
    "is_refusal": "detector.refusal",
    "layer_strengths": "metrics.layers",
    "ask_before": "metrics.measurement",
    "measure": "metrics.measurement",
    "Ablation": "search.method",
    "Selective": "search.method",
    "run_stages": "search.stages",
    "best_stage": "search.stage",
    "tune": "search.tune",
    "hold_finals": "search.finalists",
    "prepare": "jobs.edit",
    "analyze": "jobs.analyze",
    "run_tune": "jobs.edit",
    "run_edit": "jobs.edit",
    "apply_plan": "jobs.save",
    "export_plan": "jobs.export",
    "run_evaluate": "jobs.evaluate",
    "regrade": "jobs.evaluate",
    "find_faults": "report.seal",
    "write_report": "report.page",
    "examine": "jobs.doctor",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'unrefuse' has no attribute {name!r}")
    return getattr(import_module(f"unrefuse.{_WHERE[name]}"), name)

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
    "UsageError": "errors",
    "load_prompts": "prompts.sets",
    "Model": "models.load",
    "load_model": "models.load",
    "group_means": "activations.capture",
    "find_directions": "directions",
    "fit_reader": "readers",
    "load_pairs": "prompts.pairs",
    "Kernel": "kernel",
    "gaussian": "kernel",
    "choose_kernel": "kernel",
    "ablation_plan": "edit.plan",
    "selective_plan": "edit.plan",
    "hooked": "edit.hooks",
    "reply_to": "evaluate.generate",
    "is_refusal": "evaluate.refusal",
    "layer_strengths": "evaluate.layers",
    "ask_before": "search.objective",
    "measure": "search.objective",
    "Ablation": "search.method",
    "Selective": "search.method",
    "run_stages": "search.stages",
    "best_stage": "search.stage",
    "tune": "search.tune",
    "hold_finals": "search.finalists",
    "prepare": "pipeline",
    "analyze": "analysis",
    "run_tune": "pipeline",
    "run_edit": "pipeline",
    "apply_plan": "save",
    "export_plan": "export",
    "run_evaluate": "evaluation",
    "regrade": "evaluation",
    "find_faults": "report.seal",
    "examine": "doctor",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'unrefuse' has no attribute {name!r}")
    return getattr(import_module(f"unrefuse.{_WHERE[name]}"), name)

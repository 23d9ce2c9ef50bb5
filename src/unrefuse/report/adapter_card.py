"""The card of an adapter, from the record that travels with its plan."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from unrefuse.metrics.floors import Recipe
from unrefuse.metrics.statistics import share_of
from unrefuse.report.card import environment, eval_result, in_code


def adapter_figures(recipe: Recipe) -> dict[str, dict[str, float]]:
    """Retention with its interval, and quality, of whose interval the plan has the lower end."""
    measured, kept = recipe.measured, recipe.measured.retention
    return {
        "retention": share_of(kept.kept, kept.n).to_json(),
        "quality": {"value": measured.quality, "low": measured.quality_low},
    }


def adapter_card(recipe: Recipe, name: str, gguf: Sequence[str]) -> str:
    """The text of README.md for the repository `name`; `gguf` are files beside the adapter."""
    measured, base = recipe.measured, recipe.metadata.get("base", "")
    local = not base or base == "demo" or Path(base).is_dir()
    figures = adapter_figures(recipe)
    shown: Mapping[str, Any] = {
        key: {end: f"{number:.3f}" for end, number in e.items()}
        | {part: getattr(measured, f"{key}_{part}") for part in ("floor", "bound")}
        for key, e in figures.items()
    }
    title = name.split("/")[-1]
    data = ModelCardData(
        base_model=None if local else base,
        base_model_relation=None if local else "adapter",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["unrefuse", "lora", "over-refusal"],
        model_name=title,
        eval_results=[eval_result(key, round(e["value"], 4), e) for key, e in figures.items()],
    )
    return (
        environment()
        .get_template("adapter.md.jinja")
        .render(
            card_data=data.to_yaml(),
            title=in_code(name),
            base=in_code(Path(base).name if local else base),
            version=version("unrefuse"),
            matrices=len(recipe.plan),
            rank=recipe.plan[0].write.shape[1],
            n=measured.retention.n,
            tokens=measured.reply_tokens,
            gguf=[in_code(file) for file in gguf],
            **shown,
        )
    )

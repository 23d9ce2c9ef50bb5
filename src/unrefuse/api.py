"""The Python API: one function a job.

Each takes a RunConfig, or a model's name and settings by name, or both: `edit("demo", out="x")` is
`edit(RunConfig(model="demo", out="x"))`. Heavy libraries are loaded when a job starts.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unrefuse.config import RunConfig, make_config

if TYPE_CHECKING:
    from unrefuse.models.load import Model
    from unrefuse.report.evaluation import Evaluation
    from unrefuse.report.results import Result
    from unrefuse.search.discrimination import Analysis

Job = TypeVar("Job", bound=Callable[..., Any])
Given = RunConfig | str | Path | None  # a configuration, or the model of one


def _by_name(job: Job) -> Job:
    """Shows all settings in the signature of `job`, for help and completion in a notebook."""
    declared = signature(job)
    fixed = [p for p in declared.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    settings = [
        parameter.replace(annotation=RunConfig.model_fields[name].annotation)
        for name, parameter in signature(RunConfig).parameters.items()
        if name != "model"
    ]
    vars(job)["__signature__"] = declared.replace(parameters=[*fixed, *settings])
    return job


def _config(given: Given, settings: Mapping[str, Any], **defaults: Any) -> RunConfig:
    if isinstance(given, RunConfig):
        defaults |= given.model_dump(exclude_unset=True, warnings=False)
    elif given is not None:
        defaults["model"] = str(given)
    return make_config({**defaults, **settings})


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


@_by_name
def edit(model: Given = None, /, **settings: Any) -> "Result":
    """Measures a model, edits it in stages or by tuning (`tune`), tests the edit on held-out
    prompts, and saves it to `out` if it keeps the floors; else saves nothing.

    Raises UnrefuseError for a mistake in usage or input.
    """
    found = _config(model, settings)
    found.require_out()
    from unrefuse.jobs.edit import run_edit

    return run_edit(found)


@_by_name
def tune(model: Given = None, /, **settings: Any) -> "Result":
    """Searches for the kernel and the plan of an edit, by optuna or a grid (`tune`), and writes
    them to the folder `out`. Saves no model.

    Raises UnrefuseError for a mistake in usage or input.
    """
    found = _config(model, settings, tune="optuna")
    found.require_out()
    from unrefuse.jobs.edit import run_tune

    return run_tune(found)


@_by_name
def auto_tune_kernel(model: Given = None, /, **settings: Any) -> "Result":
    """The article's search over 25 kernels: `tune` with the grid. The best is `result.kernel`."""
    return tune(model, **{"tune": "grid"} | settings)


@_by_name
def evaluate(
    model: Given = None,
    /,
    *,
    against: str | None = None,
    benchmarks: Sequence[str] = (),
    benchmark_path: str | Path | None = None,
    adapter: str | Path | None = None,
    **settings: Any,
) -> "Evaluation":
    """Measures a model on the test split, by itself or `against` its original. Edits nothing; the
    report and the replies go to `out`.

    `benchmarks` are tasks of lm-eval, found in `benchmark_path` too; `adapter` is the model's edit
    as a LoRA adapter, for the backend vllm. Raises UnrefuseError for a mistake in usage or input.
    """
    found = _config(model, settings)
    if against == "demo":  # an edit of the demo is asked what the demo is asked
        asked = make_config(found.model_dump(exclude_unset=True) | {"model": "demo"})
        found = asked.model_copy(update={"model": found.model})
    found.require_out()
    from unrefuse.jobs.evaluate import Options, run_evaluate

    options = Options(against, tuple(benchmarks), _path(benchmark_path), _path(adapter))
    return run_evaluate(found, options)


@_by_name
def analyze(model: Given = None, /, *, topic: str = "", **settings: Any) -> "Analysis":
    """Says where refusal sits, by layer and topic, and how well the model tells harm from alarm.
    Edits nothing.

    Raises UnrefuseError for a mistake in usage or input, such as a `topic` that no target prompt
    has, and where the model refuses too little to tell.
    """
    from unrefuse.jobs.analyze import analyze as run

    return run(_config(model, settings), topic)


@_by_name
def apply(
    run: str | Path,
    model: Given = None,
    /,
    *,
    link: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Writes the edit of `run` into a copy of its original on disk, `out`, without loading it.
    `link` makes hard links of the files that do not change.

    Returns what `unrefuse apply --json` prints. Raises UnrefuseError, for an edit that was not
    measured above its floors on these weights too.
    """
    from unrefuse.jobs.save import apply_plan

    return apply_plan(Path(run), _config(model, settings, device="cpu", method="ablate"), link)


@_by_name
def export(
    run: str | Path,
    model: Given = None,
    /,
    *,
    lora: str | Path | None = None,
    gguf_lora: str | Path | None = None,
    control_vector: str | Path | None = None,
    scale: float = 1.0,
    **settings: Any,
) -> dict[str, Any]:
    """Writes the edit of `run`, at `scale` (0 to 1) times its strength, as adapters beside the
    original: `lora` is a new folder (PEFT, vLLM), `gguf_lora` and `control_vector` are new files
    (llama.cpp).

    Returns what `unrefuse export --json` prints. Raises UnrefuseError, for an edit that was not
    measured above its floors on these weights too.
    """
    from unrefuse.jobs.export import export_plan

    return export_plan(
        Path(run),
        _config(model, settings),
        _path(lora),
        _path(gguf_lora),
        _path(control_vector),
        scale,
    )


@_by_name
def load_model(model: Given = None, /, **settings: Any) -> "Model":
    """A chat model, ready to be asked, with its tokenizer. Raises UnrefuseError for a folder that
    is no model, and for one that can't be edited."""
    from unrefuse.models.load import load_model as load

    return load(_config(model, settings))

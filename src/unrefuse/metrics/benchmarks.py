"""Benchmarks by lm-evaluation-harness, an optional extra: accuracy with its standard error."""

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError, first_line
from unrefuse.models.load import Model


def check_benchmarks(names: Sequence[str], path: Path | None) -> None:
    """Raises UnrefuseError where lm-eval is not installed or does not know a task; loads no
    model."""
    if path and not names:
        raise UnrefuseError("--benchmark-path needs tasks: name them with --benchmarks")
    if not names:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UnrefuseError("benchmarks need lm-eval: pip install unrefuse[eval]")
    if path and not path.is_dir():
        raise UnrefuseError(f"{path} is not a folder: --benchmark-path takes a folder with tasks")
    known = set(_tasks(names, path).all_tasks)
    for name in names:
        if name not in known:
            raise UnrefuseError(
                f"lm-eval has no task {name!r}: `lm-eval ls tasks` lists the tasks; for tasks of "
                "your own, name their folder with --benchmark-path"
            )


def run_benchmarks(
    model: Model, names: Sequence[str], path: Path | None, limit: int | None, seed: int
) -> dict[str, dict[str, Any]]:
    """Each metric of each task, as "task metric": `value`, `stderr` (or None) and `n`.

    Plain text without the chat template, as the tasks' authors score base models; at most `limit`
    questions a task. Raises UnrefuseError where a task's data cannot be had.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with contextlib.redirect_stdout(sys.stderr):
        language_model = HFLM(
            pretrained=model.network, tokenizer=model.tokenizer, batch_size=model.batch_size
        )
        try:
            found = lm_eval.simple_evaluate(
                language_model,
                tasks=list(names),
                task_manager=_tasks(names, path),
                limit=limit,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except Exception as error:  # a task runs code of its own, over the network's errors
            raise UnrefuseError(
                f"lm-eval cannot run {', '.join(names)}: {first_line(error)}"
            ) from None
    return dict(_metrics(found))


def _metrics(found: Any) -> Any:
    for task, values in found["results"].items():
        n = found["n-samples"].get(task, {}).get("effective")
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            name = f"{task} {metric}" + (f" ({filtered})" if filtered not in ("", "none") else "")
            yield (
                name,
                {"value": value, "stderr": error if isinstance(error, float) else None, "n": n},
            )


def _tasks(names: Sequence[str], path: Path | None) -> Any:
    """The tasks of `path` alone where it has them all: reading lm-eval's own takes a while."""
    from lm_eval.tasks import TaskManager

    if path:
        manager = TaskManager(include_path=str(path), include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    return TaskManager(include_path=str(path) if path else None)

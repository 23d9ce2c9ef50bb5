"""The model loaded, the original asked, its states captured: all that comes before an edit."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import BaseFileLock

from unrefuse.config import REPLY_TOKENS, RunConfig, validated
from unrefuse.edits.plan import Plan
from unrefuse.edits.recipe import PLAN
from unrefuse.engine.forward import together
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.outlook import outlook
from unrefuse.jobs.save import check_out, check_writable, copy_size
from unrefuse.kernel import Kernel, choose_kernel
from unrefuse.metrics.measurement import Before, ask_before, check_shipped
from unrefuse.metrics.record import check_run, open_run
from unrefuse.models.checkpoint import checkpoint_hash
from unrefuse.models.device import is_spread
from unrefuse.models.load import Model, find_checkpoint, load_folder
from unrefuse.models.writers import text_config
from unrefuse.progress import stderr
from unrefuse.prompts.chat import placed
from unrefuse.prompts.pairs import load_pairs
from unrefuse.prompts.sets import (
    Prompt,
    check_prompts,
    load_prompts,
    prompts_hash,
)
from unrefuse.report.tuned import plan_for
from unrefuse.search.method import Ablation, Method, Selective


@dataclass
class Prepared:
    """A loaded model with all that is measured on it before an edit.

    `method` makes plans of what was captured on the train split, or is None where `plan` was found
    before, by a tuning; `run` is the folder of the run, and `lock` makes it this process's own.
    """

    config: RunConfig
    model: Model
    prompts: list[Prompt]
    before: dict[str, Before]
    method: Method | None
    kernel: Kernel
    plan: Plan | None = None
    run: Path | None = None
    lock: BaseFileLock | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def prepare(
    config: RunConfig, splits: tuple[str, ...], run: Path | None = None, saves: bool = False
) -> Prepared:
    """Loads the model, asks the original on `splits`, captures its states, chooses the kernel.

    The configuration comes back resolved: device, dtype, batch size and hashes filled in. With
    `run`, the folder of the run, the replies are kept there for a run that goes on with it. With
    `saves`, there must be room for the model in `config.out`. Raises UnrefuseError for what leaves
    the floors unmeasured, where `splits` has that of the test.
    """
    config = validated(config)
    edits = "test" in splits
    if edits and config.reply_tokens < REPLY_TOKENS:
        raise UnrefuseError(
            f"an edit needs --reply-tokens of {REPLY_TOKENS} or more: a shorter reply hides an "
            "answer that comes after a refusal"
        )
    if config.backend != "torch":
        raise UnrefuseError("an edit needs --backend torch: vLLM only writes replies, for evaluate")
    if run:
        check_writable(run)
        check_run(run, config.resume)
    seconds: dict[str, float] = {}
    with clock(seconds, "load"):
        prompts = load_prompts(config)
        if edits:
            check_shipped(prompts)
        prompts += load_pairs(config, prompts)
        check_prompts(prompts)
        folder = find_checkpoint(config)
        if saves and config.out:
            check_out(config.out, size=copy_size(folder, config.out))
        config = _with_hashes(config, checkpoint_hash(folder), prompts_hash(prompts))
        if edits and (folder / PLAN).is_file():
            raise UnrefuseError(
                f"{config.model} is an edited model: name its original, because an edit must keep "
                "the refusals of the original"
            )
        model = load_folder(folder, config, config.model)
        with placed(prompts):
            model.encode([p.text for p in prompts])
    network = model.network
    config = config.model_copy(
        update={
            "dtype": str(network.dtype).removeprefix("torch."),
            "device": str(model.device),
            "batch_size": model.batch_size,
            "device_map": "auto" if is_spread(network) else config.device_map,
        }
    )
    kernel = choose_kernel(
        config.kernel, model.layers, network.num_parameters(), model.name, text_config(network)
    )
    plan: Plan | None = None
    if kernel.plan is not None:
        plan, config = plan_for(kernel.plan, config, folder)
    stderr.print(
        f"{config.model}: {model.layers} layers, {network.num_parameters() / 1e6:.0f} M "
        f"parameters, {config.dtype} on {config.device}, batches of {config.batch_size}\n"
        f"kernel: {kernel}",
    )
    stderr.print(outlook(model, prompts, splits, config))
    lock = open_run(run, config) if run else None
    before: dict[str, Before] = {}
    with clock(seconds, "before"), _discarded(None if config.tune else run):
        jobs = [partial(ask_before, model, prompts, split, config, run) for split in splits]
        for split, asked in zip(
            splits, together(model, jobs, None, config.reply_tokens), strict=True
        ):
            before[split] = asked
            stderr.print(f"refused before, {split}: {_counts(before[split])}")
    method: Method | None = None
    with clock(seconds, "capture"):
        if plan is None and config.method == "ablate":
            method = Ablation(model, before["train"], config)
        elif plan is None:
            method = Selective(model, before["train"], prompts, config)
    return Prepared(config, model, prompts, before, method, kernel, plan, run, lock, seconds)


@contextmanager
def _discarded(run: Path | None) -> Iterator[None]:
    """Takes the folder of a run away that ends here by a mistake: with other prompts, mostly, it is
    to begin anew."""
    try:
        yield
    except UnrefuseError:
        if run is not None:
            shutil.rmtree(run)
        raise


@contextmanager
def clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Adds the wall time of the block to `seconds[step]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start


def _with_hashes(config: RunConfig, model_hash: str, prompts_hash: str) -> RunConfig:
    for what, key, value in (
        ("model's weights", "model_sha256", model_hash),
        ("prompts", "prompts_sha256", prompts_hash),
    ):
        if getattr(config, key) not in (None, value):
            raise UnrefuseError(
                f"the {what} differ from those of the configuration ({key}): name the same ones, "
                "or remove that line from the file for a new run"
            )
    return config.model_copy(update={"model_sha256": model_hash, "prompts_sha256": prompts_hash})


def _counts(before: Before) -> str:
    counts = before.counts().items()
    return ", ".join(f"{name} {refused} of {asked}" for name, (refused, asked) in counts if asked)

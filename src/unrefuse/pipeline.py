"""Every step of the main job, in order: measure, find, edit in stages, save, test, report."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unrefuse.activations.capture import group_means
from unrefuse.config import RunConfig
from unrefuse.directions import find_directions
from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import Plan
from unrefuse.edit.shards import write_checkpoint
from unrefuse.errors import UsageError
from unrefuse.evaluate.generate import last_logits
from unrefuse.evaluate.layers import LayerStrength, layer_strengths
from unrefuse.kernel import Kernel, choose_kernel
from unrefuse.models.load import (
    Model,
    checkpoint_files,
    checkpoint_hash,
    find_checkpoint,
    load_folder,
)
from unrefuse.progress import stderr
from unrefuse.prompts.sets import SETS, SPLITS, load_prompts, prompts_hash
from unrefuse.report.card import write_card
from unrefuse.report.plots import plot_result
from unrefuse.report.results import Result, stage_line, write_json
from unrefuse.save import Discard, check_logits, check_out, new_folder
from unrefuse.search.gradient import learn
from unrefuse.search.objective import Before, ask_before, measure
from unrefuse.search.stages import (
    Stage,
    advice,
    best_stage,
    keeps_floors,
    run_stages,
    try_plan,
)


@dataclass
class Prepared:
    """A loaded model with all that is measured on it before an edit."""

    config: RunConfig
    model: Model
    before: dict[str, Before]
    directions: Tensor
    kernel: Kernel
    seconds: dict[str, float] = field(default_factory=dict)


def run_edit(config: RunConfig) -> Result:
    """The main job. Saves to `config.out` an edit that keeps the floors, or nothing.

    Raises UsageError for a mistake in usage or input.
    """
    if config.out is None:
        raise UsageError("where to? name a folder: --out DIR")
    check_out(config.out)
    prepared = prepare(config, SPLITS)
    config, model, seconds = prepared.config, prepared.model, prepared.seconds
    before = prepared.before
    assert config.out is not None
    with clock(seconds, "stages"):
        stages = (_tuned if config.tune else _staged)(prepared)
    best = best_stage(stages)
    chosen = best or stages[-1]
    result = Result(
        config=config,
        kernel=chosen.kernel,
        multiplier=chosen.multiplier,
        stages=stages,
        before=before,
        measurement=chosen.measurement,
        split="search",
        seconds=seconds,
        saved=False,
        reasons=advice(chosen.measurement, config),
    )
    if best is None:
        return result
    plan = best.plan
    size = sum(file.stat().st_size for file in checkpoint_files(model.folder))
    with new_folder(config.out, size + 2**24) as folder:
        with clock(seconds, "save"):
            stored = write_checkpoint(model.folder, plan, folder)
            wanted = _probe(model, before["search"], plan)
            name, dtype = model.name, model.network.dtype
            del model, prepared
            gc.collect()
            saved = load_folder(folder, config, name)
            coarser = max(dtype, stored, key=lambda d: torch.finfo(d).eps)
            check_logits(wanted, _probe(saved, before["search"], ()), coarser)
        with clock(seconds, "test"):
            measured = measure(saved, before["test"], config, everything=True)
        keeps = keeps_floors(measured, config) and measured.removal.value > 0
        result = Result(
            **vars(result)
            | {
                "measurement": measured,
                "split": "test",
                "saved": keeps,
                "reasons": advice(measured, config),
            }
        )
        if not keeps:
            raise Discard
        plot_result(result, folder / "result.png")
        write_card(result, folder)
        write_json(result, folder / "run.json")
    return result


def analyze(config: RunConfig) -> tuple[dict[str, LayerStrength], dict[str, float]]:
    """The strength of refusal by layer, "" for all target prompts and by topic, and the seconds.

    Directions come from the train split, the strengths from the search split.
    """
    prepared = prepare(config, SPLITS[:2])
    search = prepared.before["search"]
    targets = search.usable("target")
    with clock(prepared.seconds, "layers"):
        strengths = layer_strengths(
            prepared.model,
            prepared.directions,
            [e.prompt.text for e in targets],
            [e.prompt.topic for e in targets],
            [e.before for e in targets],
            [e.prompt.text for e in search.usable("baseline")],
        )
    return strengths, prepared.seconds


def prepare(config: RunConfig, splits: tuple[str, ...]) -> Prepared:
    """Loads the model, asks the original on `splits`, finds the directions, chooses the kernel.

    The configuration comes back resolved: device, dtype, batch size and hashes filled in.
    """
    seconds: dict[str, float] = {}
    with clock(seconds, "load"):
        prompts = load_prompts(config)
        folder = find_checkpoint(config)
        config = _with_hashes(config, checkpoint_hash(folder), prompts_hash(prompts))
        model = load_folder(folder, config, config.model)
    network = model.network
    config = config.model_copy(
        update={
            "dtype": str(network.dtype).removeprefix("torch."),
            "device": str(model.device),
            "batch_size": model.batch_size,
        }
    )
    kernel = choose_kernel(
        config.kernel, model.layers, network.num_parameters(), model.name, network.config
    )
    stderr.print(
        f"{config.model}: {model.layers} layers, {network.num_parameters() / 1e6:.0f} M "
        f"parameters, {config.dtype} on {config.device}, batches of {config.batch_size}",
        f"\nkernel: {kernel.source}{_numbers(kernel)}",
        highlight=False,
    )
    before: dict[str, Before] = {}
    with clock(seconds, "before"):
        for split in splits:
            before[split] = ask_before(model, prompts, split, config)
            stderr.print(f"refused before, {split}: {_counts(before[split])}", highlight=False)
    with clock(seconds, "directions"):
        directions = measure_directions(model, before["train"], config.protect)
    return Prepared(config, model, before, directions, kernel, seconds)


def measure_directions(model: Model, train: Before, protect: float = 1.0) -> Tensor:
    """Unit directions `(layers, d_model)`, float64, from the prompts that did as expected."""
    usable = [e for name in SETS for e in train.usable(name)]
    means = group_means(model, [e.prompt.text for e in usable], [e.prompt.set for e in usable])
    return find_directions(means["target"], means["baseline"], means["keep"], protect)


def _staged(prepared: Prepared) -> list[Stage]:
    return run_stages(
        prepared.model,
        prepared.directions,
        prepared.kernel,
        prepared.before["search"],
        prepared.config,
        _tell,
    )


def _tuned(prepared: Prepared) -> list[Stage]:
    model, config, before = prepared.model, prepared.config, prepared.before
    stages = []
    for found in learn(model, prepared.directions, prepared.kernel, before["train"], config):
        name = f"gradient, step {found.step}"
        search = before["search"]
        stages.append(try_plan(model, name, found.kernel, 1.0, found.plan, search, config))
        _tell(stages[-1])
    return stages


def _tell(stage: Stage) -> None:
    stderr.print(stage_line(stage), highlight=False)


@contextmanager
def clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Adds the wall time of the block to `seconds[step]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start


def _probe(model: Model, before: Before, plan: Plan) -> Tensor:
    """Next-token logits of a few prompts, the same before saving and after."""
    prompts = [e.prompt.text for name in SETS for e in before.usable(name)[:4]]
    with hooked(model.network, plan):
        return last_logits(model, prompts)


def _with_hashes(config: RunConfig, model_hash: str, prompts_hash: str) -> RunConfig:
    for what, key, value in (
        ("model's weights", "model_sha256", model_hash),
        ("prompts", "prompts_sha256", prompts_hash),
    ):
        if getattr(config, key) not in (None, value):
            raise UsageError(
                f"the {what} are not those of the configuration ({key} differs): name the same "
                "ones, or take that line out of the file for a new run"
            )
    return config.model_copy(update={"model_sha256": model_hash, "prompts_sha256": prompts_hash})


def _numbers(kernel: Kernel) -> str:
    return "" if kernel.peak is None else f" (peak {kernel.peak:g}, width {kernel.width:g})"


def _counts(before: Before) -> str:
    counts = before.counts().items()
    return ", ".join(f"{name} {refused} of {asked}" for name, (refused, asked) in counts)

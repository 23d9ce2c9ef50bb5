"""Every step of the main job, in order: measure, find, edit in stages, save, test, report."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from filelock import BaseFileLock
from torch import Tensor

from unrefuse.config import RunConfig
from unrefuse.edits.disk.header import fingerprint
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.disk.verify import check_written
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import Plan, scaled
from unrefuse.edits.recipe import PLAN
from unrefuse.engine.generate import last_logits
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.prepare import Prepared, clock, prepare
from unrefuse.jobs.save import Discard, check_out, check_writable, copy_size, new_folder
from unrefuse.metrics.judges import Judge, judge_of
from unrefuse.metrics.judging import measured_by
from unrefuse.metrics.measurement import Before, Measurement, measure
from unrefuse.metrics.quality import check_logits
from unrefuse.models.checkpoint import checkpoint_files
from unrefuse.models.device import release_memory
from unrefuse.models.load import Model, load_folder
from unrefuse.progress import stderr
from unrefuse.prompts.sets import (
    SETS,
    SPLITS,
)
from unrefuse.report.card import write_card
from unrefuse.report.page import write_run
from unrefuse.report.plots import plot_result
from unrefuse.report.results import Result, stage_line
from unrefuse.report.sbom import write_sbom
from unrefuse.report.seal import write_sums
from unrefuse.report.tuned import keep_record, save_tuned
from unrefuse.search.discrimination import by_layer
from unrefuse.search.finalists import Trial, hold_finals, merit
from unrefuse.search.stage import Stage, advice, confirm, keeps_floors, try_plan, verdict
from unrefuse.search.stages import run_stages
from unrefuse.search.tune import tune


def run_edit(config: RunConfig) -> Result:
    """The main job. Saves to `config.out` an edit that keeps the floors, or nothing.

    What a killed run has done is in a folder beside it, OUT.run, until it is done: `config.resume`
    goes on with it. Raises UnrefuseError for a mistake in usage or input.
    """
    out = check_out(config.require_out())
    judge = judge_of(config)
    run = _run_beside(out, config)
    device = config.device  # "auto" may be another card, or several, at the end
    prepared = prepare(config, SPLITS, run, saves=True)
    config, model, seconds = prepared.config, prepared.model, prepared.seconds
    before, lock = prepared.before, prepared.lock
    best, result = search(prepared)
    if best is None:
        return _ended(result, run, lock)
    plan = best.plan
    with new_folder(out, copy_size(model.folder, out)) as folder:
        with clock(seconds, "save"):
            stored = write_checkpoint(model.folder, plan, folder, config.preserve_norm)
            lost = check_written(model.folder, folder, plan, config.preserve_norm)
            wanted = _few_logits(model, before["search"], plan)
            name, dtype = model.name, model.network.dtype
            original, made_for = model.folder, fingerprint(checkpoint_files(model.folder))
            del model, prepared
            release_memory()
            saved = load_folder(folder, config.model_copy(update={"device": device}), name)
            coarser = max(dtype, stored, key=lambda d: torch.finfo(d).eps)
            if config.preserve_norm:
                stderr.print("--preserve-norm acts on saved weights only: the test split decides")
            else:
                check_logits(wanted, _few_logits(saved, before["search"], ()), coarser)
        with clock(seconds, "test"):
            measured = measure(saved, before["test"], config, everything=True)
        result = _tested(replace(result, lost_in_rounding=tuple(lost)), measured, judge)
        if not result.saved:
            raise Discard
        plot_result(result, folder / "result.png")
        write_card(result, folder, original)
        write_sbom(result, folder)
        record = (folder / PLAN).parent
        if run is None or not config.tune:
            record.mkdir()
            save_tuned(best, result, record, made_for)
        else:
            save_tuned(best, result, run, made_for)
            keep_record(run, record)
        write_run(result, folder)
        write_sums(folder)
    return _ended(result, run, lock)


def _run_beside(out: Path, config: RunConfig) -> Path | None:
    """The folder of the run, beside `out`; None where it can't be there and need not."""
    run = out.with_name(f"{out.name}.run")
    try:
        return check_writable(run)
    except UnrefuseError:
        if config.tune or config.resume:
            raise
        return None


def _ended(result: Result, run: Path | None, lock: BaseFileLock | None) -> Result:
    """The result of a run whose folder has served: it goes, or holds the report of what was not
    saved. The trials of a tuning that saved nothing stay, too: it can be gone on with."""
    if lock is not None:
        lock.release()
    if run is None:
        return result
    if result.saved or not result.config.tune:
        shutil.rmtree(run)
    if not result.saved:
        run.mkdir(exist_ok=True)
        return _reported(result, run)
    return result


def _reported(result: Result, folder: Path) -> Result:
    """Writes the record and the report of a result. What can't be written is said, and no more."""
    try:
        write_run(result, folder)
    except OSError as error:
        stderr.print(f"cannot write a report in {folder}: {error.strerror}")
    return replace(result, left=folder)


def run_tune(config: RunConfig) -> Result:
    """Tunes, and writes the kernel and the plan that it found to `config.out`; saves no model.

    `config.out` is the folder of the run, with its trials. The figures are those of the test
    split, by hooks. Raises UnrefuseError for a mistake in usage or input.
    """
    out = check_writable(config.require_out())
    if config.preserve_norm:
        raise UnrefuseError("tune cannot measure --preserve-norm: use edit --tune")
    if config.tune is None:
        config = config.model_copy(update={"tune": "optuna"})
    judge = judge_of(config)
    prepared = prepare(config, SPLITS, out)
    best, result = search(prepared)
    if best is None:
        return _reported(result, out)
    with clock(prepared.seconds, "test"), hooked(prepared.model.network, best.plan):
        measured = measure(prepared.model, prepared.before["test"], prepared.config, True)
    result = _tested(result, measured, judge)
    if result.saved:
        save_tuned(best, result, out, fingerprint(checkpoint_files(prepared.model.folder)))
        plot_result(result, out / "result.png")
    return _reported(result, out)


def search(prepared: Prepared) -> tuple[Stage | None, Result]:
    """The best edit by the search split, and the result as it stands there: nothing saved yet."""
    config = prepared.config
    with clock(prepared.seconds, "capture"):
        layers = by_layer(prepared.method, prepared.before["search"])
    with clock(prepared.seconds, "tuning" if config.tune else "stages"):
        stages, best = (_tuned if config.tune else _staged)(prepared)
    chosen = best or stages[-1]
    result = Result(
        config=config,
        kernel=chosen.kernel,
        multiplier=chosen.multiplier,
        stages=stages,
        before=prepared.before,
        measurement=chosen.measurement,
        split="search",
        seconds=prepared.seconds,
        saved=False,
        reasons=advice(chosen.measurement, config),
        layers=layers,
    )
    return best, result


def _tested(result: Result, measured: Measurement, judge: Judge | None) -> Result:
    """The result with the figures of the test split, which choose nothing but whether it is
    `saved`: where they keep the floors.

    A judge's figures take the place of the detector's, but both have to keep the floors: a judge
    can be a stricter yardstick, and no way around one. A judge that fails loses nothing: the
    figures are then the detector's, and the result says so.
    """
    config = result.config
    found = replace(
        result,
        measurement=measured,
        split="test",
        saved=keeps_floors(measured, config) and measured.removal.value > 0,
        reasons=verdict(measured, config, result.reasons),
    )
    if judge is None:
        return found
    try:
        with clock(result.seconds, "judge"):
            by_judge, agreement = measured_by(judge, measured, config.seed)
    except UnrefuseError as error:
        return replace(found, unjudged=str(error))
    reasons = verdict(by_judge, config, result.reasons)
    if not found.saved:
        by_detector = verdict(measured, config, [])
        reasons += [f"by the built-in detector's grades: {reason}" for reason in by_detector]
    test = replace(result.before["test"], exchanges=by_judge.exchanges)
    return replace(
        found,
        measurement=by_judge,
        saved=found.saved and keeps_floors(by_judge, config) and by_judge.removal.value > 0,
        reasons=reasons,
        before=result.before | {"test": test},
        judge=judge.name,
        detected=measured,
        agreement=agreement,
    )


def _staged(prepared: Prepared) -> tuple[list[Stage], Stage | None]:
    model, config, kernel = prepared.model, prepared.config, prepared.kernel
    before = prepared.before["search"]
    if prepared.method is not None:
        stages = run_stages(model, prepared.method, kernel, before, config, _tell)
    else:
        assert prepared.plan is not None
        strength = config.strength or 1.0
        found = scaled(prepared.plan, strength)
        stages = [try_plan(model, "tuned plan", kernel, strength, found, before, config)]
        _tell(stages[0])
    confirmed, best = confirm(model, stages, config, _tell)
    return stages + confirmed, best


def _tuned(prepared: Prepared) -> tuple[list[Stage], Stage | None]:
    model, config, before = prepared.model, prepared.config, prepared.before
    assert prepared.run is not None
    assert prepared.method is not None  # a tuning takes no kernel file
    pairs = [p for p in prepared.prompts if p.pair and p.split == "search"]
    trials = tune(
        model, prepared.method, before["search"], pairs, config, prepared.run, _tell_trial
    )
    if config.tune == "grid" and config.strength is None:
        top = max(trials, key=lambda trial: merit(trial.score, config))
        stages = run_stages(model, prepared.method, top.kernel, before["search"], config, _tell)
        confirmed, best = confirm(model, stages, config, _tell)
        return stages + confirmed, best
    return hold_finals(model, trials, before["search"], config, _tell)


def _tell_trial(trial: Trial) -> None:
    s = trial.score
    stderr.print(
        f"  trial {trial.number}: openings removed {s.removal:.2f}, kept {s.retention:.2f}, "
        f"answered ones refused {s.refused:.2f}, pairs right {s.pairs:.2f}, KL {s.kl:.3f}",
    )


def _tell(stage: Stage) -> None:
    stderr.print(stage_line(stage))


def _few_logits(model: Model, before: Before, plan: Plan) -> Tensor:
    """Next-token logits of a few prompts, the same before saving and after."""
    prompts = [e.prompt.text for name in SETS for e in before.usable(name)[:4]]
    with hooked(model.network, plan):
        return last_logits(model, prompts)

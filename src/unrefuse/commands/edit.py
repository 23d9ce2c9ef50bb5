"""`unrefuse edit` and `unrefuse tune`: the main job."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.commands.options import (
    AllowPickle,
    Baseline,
    BatchSize,
    Column,
    Config,
    DataSplit,
    Dequantize,
    Device,
    DeviceMap,
    Dtype,
    Imports,
    Json,
    JudgeInput,
    JudgeLabel,
    JudgeName,
    Keep,
    KernelFile,
    Lang,
    Limit,
    Method,
    ModelName,
    Pairs,
    Peak,
    PreserveNorm,
    Probe,
    Profile,
    Protect,
    QualityFloor,
    RemovalTarget,
    ReplyTokens,
    Resume,
    RetentionBound,
    RetentionFloor,
    Revision,
    Seed,
    Stream,
    Style,
    Target,
    TestFile,
    ThinkingTokens,
    Threshold,
    Trials,
    TrustRemoteCode,
    Width,
    settings_of,
)
from unrefuse.commands.output import print_json, say, show, tell


def edit(
    model: ModelName = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the edited model.")] = None,
    config: Config = None,
    method: Method = None,
    profile: Profile = None,
    style: Style = None,
    peak: Peak = None,
    width: Width = None,
    threshold: Threshold = None,
    kernel: KernelFile = None,
    strength: Annotated[float | None, typer.Option(help="One stage with this multiplier.")] = None,
    preserve_norm: PreserveNorm = None,
    tune: Annotated[str | None, typer.Option(help="optuna or grid, in place of stages.")] = None,
    trials: Trials = None,
    resume: Resume = None,
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
    pairs: Pairs = None,
    imports: Imports = None,
    test_target: TestFile = None,
    test_baseline: TestFile = None,
    test_keep: TestFile = None,
    column: Column = None,
    split: DataSplit = None,
    lang: Lang = None,
    limit: Limit = None,
    protect: Protect = None,
    removal_target: RemovalTarget = None,
    quality_floor: QualityFloor = None,
    retention_floor: RetentionFloor = None,
    retention_bound: RetentionBound = None,
    reply_tokens: ReplyTokens = None,
    thinking_tokens: ThinkingTokens = None,
    judge: JudgeName = None,
    judge_label: JudgeLabel = None,
    judge_input: JudgeInput = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    batch_size: BatchSize = None,
    stream: Stream = None,
    seed: Seed = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    dequantize: Dequantize = None,
    probe: Probe = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL, edit it in stages or by tuning, test the edit, save it to a new folder."""
    settings = settings_of(locals())
    from unrefuse.jobs.edit import run_edit

    result = run_edit(settings)
    where = f"{settings.out} (card: {settings.out}/README.md, record: {settings.out}/run.json)"
    words = ["evaluate", str(settings.out), "--against", settings.model, "--judge", settings.judge]
    again = f"`unrefuse {shlex.join(words)} --out DIR`, with the same prompts, asks it for the rest"
    _report(result, where, as_json, f"; {again}")


def tune(
    model: ModelName = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: new or empty.")] = None,
    config: Config = None,
    search: Annotated[str | None, typer.Option(help="optuna or grid. Default optuna.")] = None,
    method: Method = None,
    profile: Profile = None,
    style: Style = None,
    peak: Peak = None,
    width: Width = None,
    threshold: Threshold = None,
    trials: Trials = None,
    resume: Resume = None,
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
    pairs: Pairs = None,
    imports: Imports = None,
    test_target: TestFile = None,
    test_baseline: TestFile = None,
    test_keep: TestFile = None,
    column: Column = None,
    split: DataSplit = None,
    lang: Lang = None,
    limit: Limit = None,
    protect: Protect = None,
    removal_target: RemovalTarget = None,
    quality_floor: QualityFloor = None,
    retention_floor: RetentionFloor = None,
    retention_bound: RetentionBound = None,
    reply_tokens: ReplyTokens = None,
    thinking_tokens: ThinkingTokens = None,
    judge: JudgeName = None,
    judge_label: JudgeLabel = None,
    judge_input: JudgeInput = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    dequantize: Dequantize = None,
    probe: Probe = None,
    as_json: Json = False,
) -> None:
    """Find the kernel and the plan of an edit; `edit --kernel OUT/kernel.json` applies them."""
    settings = settings_of(locals() | {"tune": search or (None if config else "optuna")})
    from unrefuse.jobs.edit import run_tune

    result = run_tune(settings)
    _report(result, f"{settings.out}/kernel.json, for `unrefuse edit --kernel`", as_json)


def _report(result: Any, where: str, as_json: bool, again: str = "") -> None:
    """Prints a result; exit status 1 where nothing was saved, 2 where the judge failed. `again` is
    how to ask it again for what was saved."""
    from unrefuse.report.results import example_text, result_table
    from unrefuse.report.terminal import layer_bars

    if as_json:
        print_json(result.to_json())
    else:
        show(result_table(result))
        tell(f"\nkernel: {result.kernel.source}, multiplier {result.multiplier:g}")
        show(layer_bars({"weight": result.kernel.weights}), example_text(result))
        if result.saved:
            tell(f"\nsaved: {where}")
    for reason in result.reasons:
        say(reason)
    if not result.saved:
        say(f"nothing was saved: the goal is not met on the {result.split} split")
    if result.unjudged:
        told = f"{result.unjudged}; all figures are those of the built-in detector alone"
        say(f"unrefuse: {told}{again if result.saved else ''}")
    if result.unjudged or not result.saved:
        raise typer.Exit(2 if result.unjudged else 1)

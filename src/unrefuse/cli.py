"""The command line: parse, call one function, print."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.options import (
    AllowPickle,
    Baseline,
    BatchSize,
    Column,
    Config,
    DataSplit,
    Device,
    Dtype,
    Json,
    Keep,
    KernelFile,
    KernelSteps,
    Lang,
    Limit,
    ModelName,
    Peak,
    Profile,
    Protect,
    QualityFloor,
    RemovalTarget,
    ReplyTokens,
    Resume,
    RetentionFloor,
    Revision,
    Seed,
    Shape,
    Steps,
    Style,
    Target,
    TestFile,
    Threshold,
    Trials,
    TrustRemoteCode,
    Width,
    kernel_settings,
    settings_of,
)

app = typer.Typer(
    name="unrefuse",
    help="Edit an open chat model so that it stops false refusals and goes on with true ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prompts_app = typer.Typer(no_args_is_help=True, help="List, show and check prompt sets.")
app.add_typer(prompts_app, name="prompts")


@app.command()
def edit(
    model: ModelName = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the edited model.")] = None,
    config: Config = None,
    profile: Profile = None,
    style: Style = None,
    peak: Peak = None,
    width: Width = None,
    threshold: Threshold = None,
    kernel: KernelFile = None,
    strength: Annotated[float | None, typer.Option(help="One stage with this multiplier.")] = None,
    tune: Annotated[
        str | None, typer.Option(help="gradient, optuna or grid, in place of stages.")
    ] = None,
    steps: Steps = None,
    kernel_steps: KernelSteps = None,
    shape: Shape = None,
    trials: Trials = None,
    resume: Resume = None,
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
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
    reply_tokens: ReplyTokens = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL, edit it in stages or by tuning, test the edit, save it to a new folder."""
    settings = settings_of(locals())
    from unrefuse.pipeline import run_edit

    result = run_edit(settings)
    where = f"{settings.out} (card: {settings.out}/README.md, record: {settings.out}/run.json)"
    _report(result, where, as_json)


@app.command()
def tune(
    model: ModelName = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: new or empty.")] = None,
    config: Config = None,
    method: Annotated[
        str | None, typer.Option(help="gradient, optuna or grid. Default gradient.")
    ] = None,
    profile: Profile = None,
    style: Style = None,
    peak: Peak = None,
    width: Width = None,
    threshold: Threshold = None,
    steps: Steps = None,
    kernel_steps: KernelSteps = None,
    shape: Shape = None,
    trials: Trials = None,
    resume: Resume = None,
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
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
    reply_tokens: ReplyTokens = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Json = False,
) -> None:
    """Find the kernel and the plan of an edit; `edit --kernel OUT/kernel.json` applies them."""
    settings = settings_of(locals() | {"tune": method or (None if config else "gradient")})
    from unrefuse.pipeline import run_tune

    result = run_tune(settings)
    _report(result, f"{settings.out}/kernel.json, for `unrefuse edit --kernel`", as_json)


def _report(result: Any, where: str, as_json: bool) -> None:
    """Prints a result; exit status 1 where nothing was saved."""
    from unrefuse.report.results import example_text, result_table
    from unrefuse.report.terminal import layer_bars

    if as_json:
        _print_json(result.to_json())
    else:
        console = _console()
        console.print(result_table(result))
        console.print(f"\nkernel: {result.kernel.source}, multiplier {result.multiplier:g}")
        console.print(layer_bars(result.kernel.curves("weight")))
        console.print(example_text(result))
        if result.saved:
            console.print(f"\nsaved: {where}", highlight=False, soft_wrap=True, markup=False)
    for reason in result.reasons:
        _say(reason)
    if not result.saved:
        _say(f"nothing was saved: the goal is not met on the {result.split} split")
        raise typer.Exit(1)


@app.command()
def analyze(
    model: ModelName = None,
    config: Config = None,
    plot: Annotated[Path | None, typer.Option(help="Write the chart: .png, .svg, .pdf.")] = None,
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
    column: Column = None,
    split: DataSplit = None,
    lang: Lang = None,
    limit: Limit = None,
    protect: Protect = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Json = False,
) -> None:
    """Show where refusal sits: its strength by layer, over all and per topic."""
    settings = settings_of(locals())
    from unrefuse.pipeline import analyze as run
    from unrefuse.report.plots import check_image, plot_layers
    from unrefuse.report.terminal import layer_bars

    if plot:
        check_image(plot)
    strengths, seconds = run(settings)
    whole = strengths[""]
    if plot:
        plot_layers(strengths, settings.model, plot)
    peak, width = whole.suggest()
    if as_json:
        topics = {topic: s.to_json() for topic, s in strengths.items() if topic}
        took = {step: round(s, 2) for step, s in seconds.items()}
        _print_json({**whole.to_json(), "topics": topics, "seconds": took})
        return
    console = _console()
    console.print(
        layer_bars({"separation (spreads)": whole.separation, "effect (nats)": whole.effect}, 2)
    )
    for topic, strength in strengths.items():
        if topic:
            t_peak, t_width = strength.suggest()
            console.print(
                f"{topic}: n {strength.n}, peak {t_peak:.2f}, width {t_width:.2f}, largest effect "
                f"{max(strength.effect):.2f}",
                markup=False,
                highlight=False,
            )
    console.print(f"\nsuggested: --peak {peak:.2f} --width {width:.2f}", highlight=False)


@app.command()
def kernel(
    layers: Annotated[int, typer.Option(help="Number of layers.")] = 32,
    profile: Profile = None,
    style: Style = None,
    peak: Peak = None,
    width: Width = None,
    threshold: Threshold = None,
    kernel: KernelFile = None,
    model_name: Annotated[
        str | None, typer.Option("--model", help="Preset of this model, e.g. Qwen2.5-7B.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="A profile, style, preset, kernel file or PEAK,WIDTH to show beside; repeatable."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture: .png, .svg, .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Print and plot a weight kernel, one over another with --compare."""
    from unrefuse.kernel import choose_kernel, named_kernel

    settings = kernel_settings(locals())
    chosen = choose_kernel(settings, layers, name=model_name or "")
    kernels = [(chosen.source, chosen)]
    kernels += [(name, named_kernel(name, layers, settings.threshold)) for name in compare or []]
    if plot:
        from unrefuse.report.plots import plot_kernels

        plot_kernels(kernels, plot)
    if as_json:
        compared = {name: k.describe() for name, k in kernels[1:]}
        _print_json(chosen.describe() | ({"compare": compared} if compared else {}))
        return
    from unrefuse.report.terminal import layer_bars

    bars = {label: w for name, k in kernels for label, w in k.curves(name).items()}
    _console().print(layer_bars(bars))


@prompts_app.command("list")
def prompts_list(as_json: Json = False) -> None:
    """The shipped sets: how many prompts by set, split and language."""
    from collections import Counter

    from rich.table import Table

    from unrefuse.prompts.sets import SETS, read_set

    shipped = [p for name in SETS for p in read_set("shipped", name)]
    planted = read_set("planted", "target")
    rows = Counter((p.source, p.set, p.split, p.lang) for p in [*shipped, *planted])
    if as_json:
        keys = ("source", "set", "split", "lang")
        _print_json({"sets": [dict(zip(keys, k, strict=True)) | {"n": n} for k, n in rows.items()]})
        return
    table = Table("source", "set", "split", "language", "prompts")
    for key, n in sorted(rows.items()):
        table.add_row(*key, str(n))
    _console().print(table)


@prompts_app.command("show")
def prompts_show(
    source: Annotated[str, typer.Argument(help="target, baseline, keep, planted or a file.")],
    column: Column = None,
    split: DataSplit = None,
    as_json: Json = False,
) -> None:
    """Print the prompts of a shipped set or of a file."""
    from unrefuse.prompts.sets import SETS, read_set
    from unrefuse.report.terminal import plain

    where = "shipped" if source in SETS else source
    name = source if source in SETS else "target"
    prompts = read_set(where, name, column or "prompt", split or "train")
    if as_json:
        _print_json({"prompts": [vars(p) for p in prompts]})
        return
    for p in prompts:
        typer.echo("\t".join((p.split, p.lang, p.topic, plain(p.text))))


@prompts_app.command("check")
def prompts_check(
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
    column: Column = None,
    split: DataSplit = None,
    as_json: Json = False,
) -> None:
    """Check prompt files: empty lines, duplicates, a prompt in two sets. Exit 2 on any."""
    from unrefuse.prompts.sets import SETS, find_problems, read_set

    given = {"target": target, "baseline": baseline, "keep": keep}
    prompts = [
        p
        for name in SETS
        for p in read_set(given[name] or "shipped", name, column or "prompt", split or "train")
    ]
    problems = find_problems(prompts)
    if as_json:
        _print_json({"prompts": len(prompts), "problems": problems})
    else:
        for problem in problems:
            typer.echo(problem)
        typer.echo(f"{len(prompts)} prompts, {len(problems)} problems")
    if problems:
        raise typer.Exit(2)


def main() -> None:
    """The entry point: one line and status 2 for a mistake, 130 for Ctrl-C."""
    from unrefuse.errors import UsageError

    try:
        app()
    except UsageError as error:
        _say(f"unrefuse: {error}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _say("unrefuse: interrupted, nothing was saved")
        raise


INTERRUPTED = 130


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _say(line: str) -> None:
    typer.echo(line, err=True)

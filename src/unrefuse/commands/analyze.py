"""`unrefuse analyze` and `unrefuse kernel`: what happens by layer."""

from pathlib import Path
from typing import Annotated

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
    Keep,
    KernelFile,
    Lang,
    Limit,
    ModelName,
    Pairs,
    Peak,
    Probe,
    Profile,
    Revision,
    Seed,
    Stream,
    Style,
    Target,
    ThinkingTokens,
    Threshold,
    TrustRemoteCode,
    Width,
    kernel_settings,
    settings_of,
)
from unrefuse.commands.output import print_json, show, tell
from unrefuse.errors import UnrefuseError


def analyze(
    model: ModelName = None,
    config: Config = None,
    plot: Annotated[Path | None, typer.Option(help="Write the chart: .png, .svg, .pdf.")] = None,
    topic: Annotated[
        str | None, typer.Option(help="Write a kernel of this topic's own layers.")
    ] = None,
    kernel_out: Annotated[
        Path | None, typer.Option(help="New file for it; `edit --kernel FILE` takes it.")
    ] = None,
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
    pairs: Pairs = None,
    imports: Imports = None,
    column: Column = None,
    split: DataSplit = None,
    lang: Lang = None,
    limit: Limit = None,
    thinking_tokens: ThinkingTokens = None,
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
    """Say whether there is something to gain from an edit: where refusal sits, by layer and
    topic, and how well the model itself tells alarm from harm."""
    settings = settings_of(locals())
    from unrefuse.jobs.analyze import analyze as run
    from unrefuse.jobs.analyze import write_kernel
    from unrefuse.jobs.save import check_new, new_file
    from unrefuse.metrics.measurement import TooFew
    from unrefuse.report.plots import check_image, plot_layers
    from unrefuse.report.terminal import layer_bars

    if plot:
        check_image(plot)
        check_new(plot, replace=True)
    if kernel_out:
        check_new(kernel_out)
    if topic and not kernel_out:
        raise UnrefuseError("where to write the kernel of this topic? --kernel-out FILE")
    try:
        found = run(settings, topic or "")
    except TooFew as few:
        verdict = f"Nothing to gain that could be measured: {few}"
        print_json({"verdict": verdict}) if as_json else tell(verdict)
        return
    peak, width = found.suggest()
    command = f"unrefuse edit {settings.model} --peak {peak:.2f} --width {width:.2f}"
    if kernel_out:
        write_kernel(found, topic or "", settings.kernel.threshold, kernel_out)
        command = f"unrefuse edit {settings.model} --kernel {kernel_out}"
    if plot:
        with new_file(plot, replace=True) as file:
            plot_layers(found, settings.model, file)
    if as_json:
        print_json(found.to_json())
        return
    whole, told = found.strengths[""], found.told
    columns = {
        "effect (nats)": whole.effect,
        "harm told from alarm (AUC)": told.auc,
        "could be freed": told.freed,
    }
    show(layer_bars(columns, 2))
    for name, (freed, n) in told.topics.items():
        line = f"{name}: {n} false refusals, {freed:.0%} could be freed"
        if name in found.strengths:
            effect = found.strengths[name].effect
            line += f"; largest effect {max(effect):.2f} in layer {effect.index(max(effect))}"
        tell(line)
    tell(f"\n{told.verdict()}")
    tell(f"to edit: {command} --out DIR")


def kernel(
    layers: Annotated[int, typer.Option(help="Number of layers.", min=1, max=10_000)] = 32,
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
        from unrefuse.jobs.save import new_file
        from unrefuse.report.plots import check_image, plot_kernels

        check_image(plot)
        with new_file(plot, replace=True) as file:
            plot_kernels(kernels, file)
    if as_json:
        compared = {name: k.describe() for name, k in kernels[1:]}
        print_json(chosen.describe() | ({"compare": compared} if compared else {}))
        return
    from unrefuse.report.terminal import layer_bars

    bars = {name: kernel.weights for name, kernel in kernels}
    show(layer_bars(bars))

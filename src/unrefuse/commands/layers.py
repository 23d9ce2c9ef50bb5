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
    Json,
    Keep,
    KernelFile,
    Lang,
    Limit,
    ModelName,
    Peak,
    Probe,
    Profile,
    Protect,
    Revision,
    Seed,
    Stream,
    Style,
    Target,
    Threshold,
    TrustRemoteCode,
    Width,
    kernel_settings,
    settings_of,
)
from unrefuse.commands.output import console, print_json


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
        print_json({**whole.to_json(), "topics": topics, "seconds": took})
        return
    screen = console()
    screen.print(
        layer_bars({"separation (spreads)": whole.separation, "effect (nats)": whole.effect}, 2)
    )
    for topic, strength in strengths.items():
        if topic:
            t_peak, t_width = strength.suggest()
            screen.print(
                f"{topic}: n {strength.n}, peak {t_peak:.2f}, width {t_width:.2f}, largest effect "
                f"{max(strength.effect):.2f}",
                markup=False,
                highlight=False,
            )
    screen.print(f"\nsuggested: --peak {peak:.2f} --width {width:.2f}", highlight=False)


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
        print_json(chosen.describe() | ({"compare": compared} if compared else {}))
        return
    from unrefuse.report.terminal import layer_bars

    bars = {label: w for name, k in kernels for label, w in k.curves(name).items()}
    console().print(layer_bars(bars))

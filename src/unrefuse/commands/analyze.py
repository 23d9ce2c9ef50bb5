"""`unrefuse analyze` and `unrefuse kernel`: what happens by layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unrefuse.commands.options import NO_MODEL, Json, takes
from unrefuse.commands.output import print_json, print_out, show
from unrefuse.errors import UnrefuseError

if TYPE_CHECKING:
    from unrefuse.config import RunConfig

Plot = Annotated[
    Path | None,
    typer.Option(help="Write a picture: .png, .svg or .pdf.", rich_help_panel="Output"),
]


@takes(
    *("config", "model", "prompts", "run"),
    without=(
        *("test_target", "test_baseline", "test_keep", "reply_tokens"),
        *("judge", "judge_label", "judge_input", "backend"),
    ),
)
def analyze(
    settings: "RunConfig",
    topic: Annotated[
        str | None, typer.Option(help="Write a kernel for the layers of this topic.")
    ] = None,
    kernel_out: Annotated[
        Path | None, typer.Option(help="New file for the kernel, for `edit --kernel FILE`.")
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Show what an edit could gain: where refusal sits, by layer and topic, and how well the model
    itself tells false alarms from harm."""
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
        raise UnrefuseError("--topic needs a file for its kernel: --kernel-out FILE")
    try:
        found = run(settings, topic or "")
    except TooFew as few:
        verdict = f"Nothing measurable to gain: {few}"
        print_json({"verdict": verdict}) if as_json else print_out(verdict)
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
    whole, discrimination = found.strengths[""], found.discrimination
    columns = {
        "effect (nats)": whole.effect,
        "harm told from alarm (AUC)": discrimination.auc,
        "could be freed": discrimination.freed,
    }
    show(layer_bars(columns, 2))
    for name, (freed, n) in discrimination.topics.items():
        line = f"{name}: {n} false refusals, {freed:.0%} could be freed"
        if name in found.strengths:
            effect = found.strengths[name].effect
            line += f"; largest effect {max(effect):.2f} in layer {effect.index(max(effect))}"
        print_out(line)
    print_out(f"\n{discrimination.verdict()}")
    print_out(f"to edit: {command} --out DIR")


@takes("kernel", defaults={"model": NO_MODEL})
def kernel(
    settings: "RunConfig",
    layers: Annotated[int, typer.Option(help="Number of layers.", min=1, max=10_000)] = 32,
    model: Annotated[
        str | None, typer.Option(help="Preset of this model, such as Qwen2.5-7B.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Kernel to show beside it: a name, a file or PEAK,WIDTH; can be repeated."
        ),
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Print and plot a weight kernel; with --compare, several."""
    from unrefuse.kernel import choose_kernel, named_kernel

    chosen = choose_kernel(settings.kernel, layers, name=model or "")
    kernels = [(chosen.source, chosen)]
    kernels += [
        (name, named_kernel(name, layers, settings.kernel.threshold)) for name in compare or []
    ]
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

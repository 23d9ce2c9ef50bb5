"""Pictures: PNG, SVG and PDF by matplotlib, without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from unrefuse.errors import UnrefuseError
from unrefuse.kernel import Kernel

if TYPE_CHECKING:  # a kernel is drawn without torch
    from unrefuse.report.results import Result
    from unrefuse.search.discrimination import Analysis

IMAGE_TYPES = (".png", ".svg", ".pdf")
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")


def plot_kernels(kernels: Sequence[tuple[str, Kernel]], file: Path) -> None:
    """One or more kernels over depth, one over another. Raises UnrefuseError for the file type."""
    figure, (axes,) = _figure(1)
    # A legend leaves out what begins with an underscore.
    curves = {f" {n}" if n.startswith("_") else n: kernel.weights for n, kernel in kernels}
    for (label, weights), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
        x = [i / max(1, len(weights) - 1) for i in range(len(weights))]
        axes.plot(x, weights, marker="o", markersize=3, label=label, color=colour)
    axes.set(xlabel="position (layer / (layers - 1))", ylabel="weight", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend()
    _write(figure, file)


def plot_layers(found: "Analysis", name: str, file: Path) -> None:
    """The effect on refusal by layer, with a thin line per topic, and how well harm is told from
    alarm. Raises UnrefuseError."""
    figure, (left, right) = _figure(2)
    for topic, strength in found.strengths.items():
        if topic:
            left.plot(strength.effect, linewidth=0.6, color="#999999")
        else:
            left.bar(range(len(strength.effect)), strength.effect, color=COLOURS[0], alpha=0.8)
    left.set(xlabel="layer", ylabel="log-odds of refusal taken away, nats")
    right.plot(found.discrimination.auc, color=COLOURS[2], label="harm told from alarm (AUC)")
    right.plot(
        found.discrimination.freed, color=COLOURS[1], label="false refusals that could be freed"
    )
    right.set(xlabel="layer", ylim=(0, 1.02))
    right.legend(loc="lower right")
    peak, width = found.suggest()
    figure.suptitle(f"{name}: suggested peak {peak:.2f}, width {width:.2f}")
    _write(figure, file)


def plot_result(result: "Result", file: Path) -> None:
    """Refusal rates of the three sets before and after with their intervals, and the kernel."""
    from unrefuse.edits.plan import UNIT
    from unrefuse.metrics.measurement import count_graded
    from unrefuse.metrics.statistics import share

    figure, (left, right) = _figure(2)
    names = list(result.before[result.split].counts())
    for offset, when, colour in ((-0.2, "before", "#bbbbbb"), (0.2, "after", COLOURS[0])):
        for i, name in enumerate(names):
            refused, asked = count_graded(result.measurement.exchanges, name, when)
            e = share(k < refused for k in range(asked))
            left.bar(
                i + offset,
                e.value,
                0.38,
                color=colour,
                yerr=[[e.value - e.low], [e.high - e.value]],
                capsize=3,
                label=when if i == 0 else None,
            )
    left.set_xticks(range(len(names)), names)
    left.set(ylim=(0, 1.05), ylabel=f"share refused, {result.split} split")
    left.legend()
    selective, weights = result.config.method == "selective", result.kernel.weights
    unit = UNIT / sum(weights) if selective else 1.0
    strengths = [weight * result.multiplier * unit for weight in weights]
    right.bar(range(len(strengths)), strengths, color=COLOURS[1])
    right.set(xlabel="layer", ylabel="mean differences written" if selective else "strength")
    _write(figure, file)


def check_image(file: Path) -> None:
    """Raises UnrefuseError unless the name ends in a picture type."""
    if file.suffix.lower() not in IMAGE_TYPES:
        raise UnrefuseError(f"{file}: the name of a picture must end in {', '.join(IMAGE_TYPES)}")


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5.2 * panels, 3.6), dpi=130, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _write(figure: Figure, file: Path) -> None:
    check_image(file)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names are no formulas
    try:
        # No dates and no random ids in the file: the same picture has the same bytes.
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        with rc_context({"svg.hashsalt": "unrefuse"}):
            figure.savefig(file, metadata=dated.get(file.suffix.lower()))
    except OSError as error:
        raise UnrefuseError(f"cannot write {file}: {error.strerror}") from None

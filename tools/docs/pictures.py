"""The pictures of the docs, made by the functions of the package: kernels, fits, measured rows.

    python -m tools.docs.pictures [FOLDER]

writes docs/img, or FOLDER. The same versions of the packages give the same bytes.
"""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from unrefuse.edits.directions import find_directions
from unrefuse.edits.readers import fit_reader
from unrefuse.kernel import gaussian, named_kernel

DOCS = Path(__file__).parents[2] / "docs"
BLUE, ORANGE, GREEN, RED = "#4c72b0", "#dd8452", "#55a868", "#c44e52"
GREY = "#808080"  # is read on a white page and on a dark one
LAYERS = 32
# The article's printed weights for 32 layers, peak 0.6, width 0.15.
ARTICLE = {0: 0.007, 5: 0.099, 10: 0.449, 15: 0.800, 19: 0.985, 20: 0.969, 25: 0.535, 30: 0.099,
           31: 0.055}  # fmt: skip
KINDS = {"everyday": (GREY, 0.0), "only sounds harmful": (BLUE, 1.0), "harmful": (RED, -0.4)}


def kernel(axes: Axes) -> None:
    """Profiles of the weight kernel over the depth."""
    for name, colour in (("default", BLUE), ("early_focus", GREEN), ("late_focus", ORANGE),
                         ("broad", GREY), ("narrow", RED)):  # fmt: skip
        weights = named_kernel(name, LAYERS).weights
        axes.plot(range(LAYERS), weights, marker="o", markersize=2.5, label=name, color=colour)
    axes.set(xlabel="layer, of 32", ylabel="weight", ylim=(0, 1.05))


def article(axes: Axes) -> None:
    """The article's formula beside the table that it prints."""
    weights = gaussian(LAYERS, 0.6, 0.15, threshold=0).weights
    axes.plot(range(LAYERS), weights, color=BLUE, label="formula (what unrefuse does)")
    axes.plot(list(ARTICLE), list(ARTICLE.values()), "o", color=ORANGE, label="printed table")
    axes.axhline(0.1, color=GREY, linewidth=0.8, linestyle=":", label="threshold")
    axes.set(xlabel="layer, of 32", ylabel="weight", ylim=(0, 1.05))


def layers(axes: Axes) -> None:
    """What `unrefuse analyze demo --limit 24 --json` measured, which is kept in layers.json."""
    found = json.loads((DOCS / "img" / "layers.json").read_text(encoding="utf-8"))
    effect = found["effect"]
    axes.bar(range(len(effect)), effect, color=BLUE, alpha=0.8, label="effect on refusal (left)")
    axes.set(xlabel="layer", ylabel="log-odds of refusal, nats")
    right = axes.twinx()
    right.plot(
        found["discrimination"]["auc"], color=ORANGE, label="harm told from alarm, AUC (right)"
    )
    right.set(ylim=(0.5, 1.01), ylabel="AUC")
    _plain(right)
    right.legend(loc="lower right", frameon=False, labelcolor=GREY)


def stages(axes: Axes) -> None:
    """The stages of a measured run on a real model."""
    file = DOCS / "recipes" / "qwen2.5-coder-0.5b.toml"
    rows = tomllib.loads(file.read_text(encoding="utf-8"))["stages"]
    for name, colour in (("removal", BLUE), ("retention", RED), ("quality", GREEN)):
        x, y = ([row[key] for row in rows] for key in ("multiplier", name))
        axes.plot(x, y, marker="o", markersize=4, label=name, color=colour)
    for floor, colour in ((0.95, RED), (0.70, GREEN)):
        axes.axhline(floor, color=colour, linewidth=0.8, linestyle=":")
    axes.set(xlabel="multiplier", ylabel="share, search split", ylim=(0.35, 1.03))


def probe(axes: Axes) -> None:
    """Made-up prompts as points, and the real fit: lines of equal reading."""
    points = made_up()
    for name, (colour, _) in KINDS.items():
        x, y = points[name].T.numpy()
        axes.scatter(x, y, s=9, color=colour, label=name)
    a = reader(points)
    across = torch.linspace(-1.5, 4, 2)
    for value in (1.0, 0.0, -0.4):
        axes.plot(across, (value - a[0] * across) / a[1], color=GREY, linewidth=0.9)
        axes.annotate(f"reads {value:g}", (3.45, float((value - a[0] * 3.45) / a[1]) + 0.08),
                      color=GREY, fontsize=8)  # fmt: skip
    axes.set(xlabel="alarm", ylabel="harm", xlim=(-1.3, 4.3), ylim=(-1.5, 4.2))


def keep(axes: Axes) -> None:
    """How much refusal two edits take from the same made-up prompts."""
    points = made_up()
    means = (points[name].mean(dim=0, keepdim=True).double() for name in KINDS)
    everyday, alarm, harm = means
    direction = find_directions(alarm, everyday, harm, protect=0).squeeze(0).float()
    length = float((alarm - everyday).norm())
    a = reader(points)
    for offset, label, colour, reading in (
        (-0.2, "ablation: takes the direction out everywhere", ORANGE, direction / length),
        (0.2, "selective edit: reads with a probe", BLUE, a),
    ):
        heights = [float((points[name] @ reading).mean()) for name in KINDS]
        axes.bar([i + offset for i in range(3)], heights, 0.38, color=colour, label=label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(range(3), list(KINDS))
    axes.set(ylabel="refusal taken away")


def made_up() -> dict[str, Tensor]:
    """Points `(60, 2)` a kind, drawn with a fixed seed: alarm on the first axis, harm on the
    second."""
    draw = torch.Generator().manual_seed(0)
    centres = {"everyday": (0.0, 0.0), "only sounds harmful": (2.2, 0.2), "harmful": (2.4, 2.4)}
    return {
        name: torch.tensor(centre) + 0.45 * torch.randn(60, 2, generator=draw)
        for name, centre in centres.items()
    }


def reader(points: dict[str, Tensor]) -> Tensor:
    """The probe `(2,)` of the package, fitted on the points."""
    wanted = torch.cat([torch.full((60,), KINDS[name][1]) for name in KINDS])
    return fit_reader(torch.cat([points[name] for name in KINDS]), wanted, torch.ones(180), 0.02)


PICTURES = (kernel, article, layers, stages, probe, keep)


def draw(folder: Path) -> None:
    """Writes every picture as an SVG file, with a transparent ground."""
    folder.mkdir(exist_ok=True)
    for picture in PICTURES:
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes: Any = figure.subplots()
        picture(axes)
        _plain(axes)
        axes.legend(loc="best", frameon=False, labelcolor=GREY, fontsize=9)
        with rc_context({"svg.hashsalt": "unrefuse", "svg.fonttype": "none"}):
            figure.savefig(
                folder / f"{picture.__name__}.svg", transparent=True, metadata={"Date": None}
            )


def _plain(axes: Any) -> None:
    axes.tick_params(colors=GREY)
    for side, spine in axes.spines.items():
        spine.set(color=GREY, visible=side != "top")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(GREY)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else DOCS / "img")

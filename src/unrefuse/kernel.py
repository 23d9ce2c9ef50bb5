"""The weight kernel: how strongly each layer is edited. Formula, profiles, presets, files.

Source: "Weight Kernel and layer selection", day 15 of the Uncensored1776 series. The table of
example values there does not follow its own formula; the formula governs (docs/kernel.md).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unrefuse.config import KernelConfig
from unrefuse.errors import UnrefuseError
from unrefuse.textfile import parse_json, read_text

PROFILES: dict[str, tuple[float, float]] = {  # peak, width
    "default": (0.60, 0.15),
    "early_focus": (0.40, 0.15),
    "late_focus": (0.75, 0.15),
    "broad": (0.50, 0.25),
    "narrow": (0.60, 0.08),
}
STYLES: dict[str, tuple[float, float]] = {
    "conservative": (0.65, 0.12),
    "standard": (0.60, 0.15),
    "aggressive": (0.55, 0.20),
}


@dataclass(frozen=True)
class Preset:
    """A kernel for one known model, told by its name or by the shape in its config."""

    name: str
    peak: float
    width: float
    model_type: str
    hidden_size: int
    layers: int
    vocab_size: int


PRESETS = (
    Preset("Qwen2.5-0.5B", 0.60, 0.15, "qwen2", 896, 24, 151936),
    Preset("Qwen2.5-1.5B", 0.58, 0.14, "qwen2", 1536, 28, 151936),
    Preset("Qwen2.5-7B", 0.55, 0.16, "qwen2", 3584, 28, 152064),
    Preset("Llama-3-8B", 0.55, 0.15, "llama", 4096, 32, 128256),
    Preset("Mistral-7B", 0.55, 0.15, "mistral", 4096, 32, 32768),
)
# Name, number of parameters below which it applies, and the range of peak and width.
SIZE_CLASSES = (
    ("small", 3e9, (0.55, 0.60), (0.12, 0.15)),
    ("medium", 13e9, (0.55, 0.65), (0.15, 0.18)),
    ("large", math.inf, (0.50, 0.60), (0.18, 0.22)),
)


@dataclass(frozen=True)
class Kernel:
    """One weight >= 0 per layer and where it comes from. Only a Gaussian has a peak and a width."""

    kind: Literal["gaussian", "file"]
    weights: tuple[float, ...]
    source: str
    peak: float | None = None
    width: float | None = None
    threshold: float | None = None
    plan: Path | None = None  # what a tuning found beside the weights

    def __str__(self) -> str:
        numbers = f" (peak {self.peak:g}, width {self.width:g})" if self.peak is not None else ""
        return self.source + numbers

    def describe(self, multiplier: float | None = None) -> dict[str, Any]:
        """The `kernel` object of every JSON output."""
        return {
            "kind": self.kind,
            "peak": self.peak,
            "width": self.width,
            "threshold": self.threshold,
            "multiplier": multiplier,
            "weights": list(self.weights),
            "source": self.source,
        }


def gaussian_weight_kernel(
    num_layers: int, peak_position: float = 0.60, width: float = 0.15
) -> list[float]:
    """The article's formula, one weight a layer, without a threshold:
    `exp(-(position - peak_position)^2 / (2 width^2))`, `position = layer / (num_layers - 1)`.

    A one-layer model has position 0. Raises UnrefuseError for less than one layer, a peak outside
    0..1 and a width <= 0.
    """
    if num_layers < 1:
        raise UnrefuseError(f"layers must be at least 1, not {num_layers}")
    if not 0 <= peak_position <= 1:
        raise UnrefuseError(
            f"peak must lie between 0 and 1 (a share of the depth), not {peak_position}"
        )
    if not (width > 0 and math.isfinite(width)):
        raise UnrefuseError(f"width must be a number above 0, not {width}")
    width = min(max(width, 1e-100), 1e100)  # the square of more is no float, and no other kernel
    positions = [layer / max(1, num_layers - 1) for layer in range(num_layers)]
    return [math.exp(-((p - peak_position) ** 2) / (2 * width**2)) for p in positions]


def get_optimal_kernel_params(
    model_name: str = "", num_parameters: int | None = None
) -> tuple[float, float]:
    """The article's peak and width for a model: by its name if it is one that is known, else by
    its number of parameters, else those of the default profile."""
    peak, width, _ = _prior(KernelConfig(), num_parameters, model_name)
    return peak, width


def gaussian(
    layers: int, peak: float, width: float, threshold: float = 0.1, source: str = "peak and width"
) -> Kernel:
    """`gaussian_weight_kernel`, where a weight under `threshold` is 0: that layer is left alone.

    Raises UnrefuseError as that does, for a threshold outside 0..1, and for a kernel that leaves
    every layer alone.
    """
    if not 0 <= threshold <= 1:
        raise UnrefuseError(f"threshold must lie between 0 and 1, not {threshold}")
    weights = [w if w >= threshold else 0.0 for w in gaussian_weight_kernel(layers, peak, width)]
    if not any(weights):
        raise UnrefuseError(
            f"no layer reaches the threshold {threshold} with peak {peak} and width {width} "
            f"on {layers} layers: widen the kernel or lower the threshold"
        )
    return Kernel("gaussian", tuple(weights), source, peak, width, threshold)


def read_kernel(file: Path, layers: int) -> Kernel:
    """A custom kernel: a JSON list, an object with `weights`, or text with one weight a line.

    Raises UnrefuseError for an unreadable file, another number of weights than `layers`, a weight
    that is negative or not finite, and for all weights 0.
    """
    text = read_text(file)
    try:
        is_json = text.lstrip()[:1] in ("[", "{")
        values = parse_json(text) if is_json else [float(word) for word in text.split()]
        given = values if isinstance(values, dict) else {"weights": values}
        # Python takes true, and the characters of a string, for numbers.
        if type(given["weights"]) is not list or {*map(type, given["weights"])} - {int, float}:
            raise TypeError
        weights = tuple(float(value) for value in given["weights"])
    except (ValueError, TypeError, KeyError, OverflowError):
        raise UnrefuseError(
            f"kernel file {file}: expected a JSON list of weights, an object with the key "
            "'weights', or one weight a line"
        ) from None
    if len(weights) != layers:
        raise UnrefuseError(
            f"kernel file {file} has {len(weights)} weights; the model has {layers}"
        )
    if any(w < 0 or not math.isfinite(w) for w in weights) or not any(weights):
        raise UnrefuseError(f"kernel file {file}: weights must be finite, >= 0 and not all 0")
    plan = file.parent / str(given["plan"]) if given.get("plan") else None
    return Kernel("file", weights, f"file {file.name}", plan=plan)


def choose_kernel(
    config: KernelConfig,
    layers: int,
    parameters: int | None = None,
    name: str = "",
    model_config: Any = None,
) -> Kernel:
    """The first that applies: what the user named, the preset of a known model, the size class.

    `parameters` counts the model's weights (None: unknown, the default profile is taken), `name`
    is its folder or hub name, `model_config` its transformers config. Peak and width given by the
    user override those of the chosen source.
    """
    if config.file:
        return read_kernel(config.file, layers)
    peak, width, source = _prior(config, parameters, name, model_config)
    given = [key for key in ("peak", "width") if getattr(config, key) is not None]
    if given and source != "peak and width":
        source += f", {' and '.join(given)} given"
    return gaussian(
        layers,
        peak if config.peak is None else config.peak,
        width if config.width is None else config.width,
        config.threshold,
        source,
    )


def _prior(
    config: KernelConfig, parameters: int | None, name: str, model_config: Any = None
) -> tuple[float, float, str]:
    """Peak and width, and where they come from; see `choose_kernel`."""
    if config.profile:
        return *PROFILES[config.profile], f"profile {config.profile}"
    if config.style:
        return *STYLES[config.style], f"style {config.style}"
    if config.peak is not None and config.width is not None:
        return config.peak, config.width, "peak and width"
    if preset := find_preset(name, model_config):
        return preset.peak, preset.width, f"preset {preset.name}"
    if parameters is None:
        return *PROFILES["default"], "profile default"
    size, _, peaks, widths = next(row for row in SIZE_CLASSES if parameters < row[1])
    return sum(peaks) / 2, sum(widths) / 2, f"size class {size}"


def named_kernel(name: str, layers: int, threshold: float = 0.1) -> Kernel:
    """The kernel that a word stands for: a profile, a style, a preset, `PEAK,WIDTH`, or a file.

    Raises UnrefuseError for any other word.
    """
    numbers = re.fullmatch(r"(\d*\.?\d+),(\d*\.?\d+)", name, re.ASCII)
    if numbers:
        return gaussian(layers, float(numbers[1]), float(numbers[2]), threshold, name)
    if named := (PROFILES | STYLES).get(name):
        return gaussian(layers, *named, threshold, name)
    if preset := find_preset(name):
        return gaussian(layers, preset.peak, preset.width, threshold, f"preset {preset.name}")
    if Path(name).is_file():
        return read_kernel(Path(name), layers)
    raise UnrefuseError(
        f"there is no kernel {name!r}: name a kernel ({', '.join(PROFILES | STYLES)}), a model "
        f"({', '.join(p.name for p in PRESETS)}), PEAK,WIDTH or a file"
    )


def find_preset(name: str, model_config: Any = None) -> Preset | None:
    """The preset whose model this is, by name (instruct and coder variants too) or by config."""
    plain = _plain(name)
    for preset in PRESETS:
        wanted = _plain(preset.name)
        if re.search(rf"(?<![0-9]){re.escape(wanted)}", plain):
            return preset
        if model_config is not None and all(
            getattr(model_config, key, None) == value
            for key, value in (
                ("model_type", preset.model_type),
                ("hidden_size", preset.hidden_size),
                ("num_hidden_layers", preset.layers),
                ("vocab_size", preset.vocab_size),
            )
        ):
            return preset
    return None


def _plain(name: str) -> str:
    name = re.sub(r"meta-|coder|instruct|chat|math", "", name.lower())
    return re.sub(r"[^a-z0-9.]", "", name)

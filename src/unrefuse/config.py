"""The one configuration of a run: the same from the command line, TOML, run.json and Python.

Its settings stand in groups, one class a group. `commands/options.py` makes an option of each: the
description is the help text.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unrefuse.errors import UnrefuseError
from unrefuse.textfile import parse_json, read_text

Profile = Literal["default", "early_focus", "late_focus", "broad", "narrow"]
Style = Literal["conservative", "standard", "aggressive"]
Method = Literal["selective", "ablate"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Pairs = tuple[tuple[str, str], ...]  # matched pairs: a harmless prompt, and a harmful one
THINKING_TOKENS = 2048

# The keep set has no off switch, and a floor near 0 would be one.
LEAST_FLOOR = 0.80
# A shorter reply hides an answer that comes after a refusal.
REPLY_TOKENS = 100


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class KernelConfig(_Settings):
    """Which weight kernel a run uses. Nothing named: the preset or size class of the model."""

    profile: Profile | None = Field(None, description="A kernel by name.")
    style: Style | None = Field(None, description="A kernel by how strongly it acts.")
    file: Path | None = Field(
        None, description="A kernel of your own: a file with one weight per layer."
    )
    peak: float | None = Field(
        None, ge=0, le=1, description="Centre of the kernel, 0 to 1 of the depth."
    )
    width: float | None = Field(None, gt=0, description="Width of the kernel, in depth.")
    threshold: float = Field(0.1, ge=0, le=1, description="Kernel weights below this become 0.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [name for name in ("profile", "style", "file") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(
                f"name one of profile, style and kernel file, not {' and '.join(named)}"
            )
        if self.file and (self.peak is not None or self.width is not None):
            raise ValueError("a kernel file has its own weights: leave out peak and width")
        return self


class ModelSettings(_Settings):
    model: str = Field(min_length=1, description="A local folder, a hub name, or demo.")
    revision: str | None = Field(None, description="Revision of a hub model. Default: the newest.")
    model_sha256: str | None = Field(None, description="Stop unless the weights have this hash.")
    allow_pickle: bool = Field(False, description="Read .bin weights; a pickle can run code.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with a model.")
    dequantize: bool = Field(False, description="Edit a full copy of FP8 or MXFP4 weights.")
    discover: bool = Field(
        False, description="In an unknown architecture, edit the matrices found by experiment."
    )


class PromptSettings(_Settings):
    target: str = Field("shipped", description="Harmless prompts that the model refuses: a file.")
    baseline: str = Field("shipped", description="Harmless prompts that the model answers: a file.")
    keep: str = Field(
        "shipped", description="Harmful prompts to keep refused, in addition to the shipped ones."
    )
    pairs: Path | Pairs | None = Field(
        None, description="Matched pairs of your own: a file with columns harmless and harmful."
    )
    imports: tuple[str, ...] = Field(
        (), description="A public data set, such as xstest:FILE; can be repeated."
    )
    test_target: str | None = Field(None, description="Target prompts for the last step only.")
    test_baseline: str | None = Field(None, description="Baseline prompts for the last step only.")
    test_keep: str | None = Field(None, description="Keep prompts for the last step only.")
    column: str = Field("prompt", description="Column with the prompts, in a file or data set.")
    data_split: str = Field("train", description="Split to read of a data set on the hub.")
    languages: tuple[str, ...] = Field((), description="Only this language; can be repeated.")
    limit: int | None = Field(
        None,
        ge=16,
        description="At most this many prompts per set and split (keep: twice, train: 4 times).",
    )
    prompts_sha256: str | None = Field(None, description="Stop unless the prompts have this hash.")


class EditSettings(_Settings):
    method: Method = Field(
        "selective",
        description="selective: where a prompt only sounds harmful; ablate: on every prompt.",
    )
    kernel: KernelConfig = KernelConfig()
    strength: float | None = Field(
        None, gt=0, le=3, description="One stage with this multiplier. Default: several stages."
    )
    preserve_norm: bool = Field(False, description="With ablate: every row keeps its length.")
    protect: float = Field(
        1.0, ge=0, le=1, description="With ablate: share of the keep direction to leave in place."
    )
    harmful: float = Field(-0.4, ge=-2, le=0, description="What the probe should read from harm.")
    ridge: float = Field(0.02, gt=0, le=10, description="Strength of the probe's ridge penalty.")
    first_multiplier: float = Field(0.5, gt=0, description="Multiplier of the first stage.")
    multiplier_step: float = Field(0.15, gt=0, description="Increase of the multiplier per stage.")
    max_multiplier: float = Field(2.0, gt=0, le=3, description="Highest multiplier of a stage.")


class SearchSettings(_Settings):
    tune: Literal["grid", "optuna"] | None = Field(
        None, description="Search for a better kernel. Default: none in edit, optuna in tune."
    )
    trials: int = Field(40, ge=1, le=100_000, description="Number of optuna trials.")
    resume: bool = Field(False, description="Go on with a run that was stopped.")


class FloorSettings(_Settings):
    removal_target: float = Field(0.80, gt=0, le=1, description="Removal to reach.")
    quality_floor: float = Field(
        0.70, ge=0, le=1, description="Lowest quality allowed; its interval can begin 0.10 lower."
    )
    retention_floor: float = Field(
        0.95,
        ge=LEAST_FLOOR,
        le=1,
        description="Lowest retention allowed, 0.80 to 1; it cannot be switched off.",
    )
    retention_bound: float = Field(
        0.90,
        ge=LEAST_FLOOR,
        lt=1,
        description="Lowest allowed lower bound of retention (one-sided 95 %), 0.80 or more.",
    )


class RunSettings(_Settings):
    reply_tokens: int = Field(
        REPLY_TOKENS,
        ge=8,
        le=512,
        description="Tokens of a reply in the final test; 100 or more for an edit.",
    )
    thinking_tokens: int = Field(
        THINKING_TOKENS, ge=8, description="At most this many tokens of thoughts before a reply."
    )
    judge: str = Field(
        "builtin",
        description="Who grades the final replies: builtin, hf:NAME or openai:URL#MODEL.",
    )
    judge_label: str | None = Field(
        None, description="With hf: the classifier's label that means refused."
    )
    judge_input: str | None = Field(
        None, description="With hf: text that it reads; can hold {prompt}. Default: '{reply}'."
    )
    seed: int = Field(0, ge=0, description="Seed of splits and intervals.")
    dtype: Dtype = Field("auto", description="Precision to compute in.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    device_map: Literal["auto"] | None = Field(
        None, description="auto: accelerate spreads the model over the devices."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Prompts per batch. Default: as many as fit in memory."
    )
    stream: bool = Field(
        False, description="Run block by block from disk, for a model larger than memory."
    )
    backend: Literal["torch", "vllm"] = Field(
        "torch", description="What generates the replies; vllm measures no KL divergence."
    )


class OutputSettings(_Settings):
    out: Path | None = Field(None, description="New or empty folder to write to.")


GROUPS: dict[str, type[_Settings]] = {
    "model": ModelSettings,
    "prompts": PromptSettings,
    "edit": EditSettings,
    "search": SearchSettings,
    "floors": FloorSettings,
    "run": RunSettings,
    "output": OutputSettings,
}


# Of several bases, pydantic puts the fields of the last one first.
class RunConfig(
    OutputSettings,
    RunSettings,
    FloorSettings,
    SearchSettings,
    EditSettings,
    PromptSettings,
    ModelSettings,
):
    """Everything that decides a run. Frozen; a contradiction is an error before a model loads."""

    @model_validator(mode="before")
    @classmethod
    def _demo(cls, values: Any) -> Any:
        """The embedded model speaks English, and its false refusals are planted ones."""
        if isinstance(values, dict) and values.get("model") == "demo":
            return {"target": "planted", "languages": ("en",)} | values
        return values

    @property
    def quality_bound(self) -> float:
        """No edit whose quality has an interval that begins under this. So far under the floor,
        because a few everyday prompts, of which a good edit may lose three in twenty, show no more.
        """
        return round(self.quality_floor - 0.1, 6)

    @property
    def search_tokens(self) -> int:
        """Tokens of a reply, after its thoughts, before the final test: a refusal mostly shows at
        once."""
        return min(32, self.reply_tokens)

    def require_out(self) -> Path:
        """`out`. Raises UnrefuseError where none is named."""
        if self.out is None:
            raise UnrefuseError("no output folder is named: add --out DIR")
        return self.out

    @model_validator(mode="after")
    def _stages(self) -> Self:
        if self.first_multiplier > self.max_multiplier:
            raise ValueError("first_multiplier is above max_multiplier: no stage would run")
        if self.tune == "optuna" and self.strength is not None:
            raise ValueError("tuning finds the strength: leave out one of tune and strength")
        if self.tune and self.kernel.file:
            raise ValueError("a kernel file is not tuned: leave out one of tune and kernel file")
        if self.preserve_norm and self.method != "ablate":
            raise ValueError("preserve_norm needs the method ablate")
        if self.backend == "vllm" and (self.stream or self.device_map or self.device != "auto"):
            raise ValueError("vLLM finds its device by itself: leave out device and stream")
        if self.stream and self.tune:
            raise ValueError("tuning runs a model too often to stream it: leave out stream or tune")
        if self.stream and self.device_map:
            raise ValueError("stream and device_map are two ways to hold a model: leave out one")
        return self


def load_config(
    file: Path | None = None, defaults: Mapping[str, Any] = MappingProxyType({}), **overrides: Any
) -> RunConfig:
    """The configuration of `file` (TOML, JSON or a run.json), over `defaults`, under `overrides`.

    `kernel` in `overrides` is a mapping that is merged over the file's. Overrides of None do not
    count; the others take the place of what contradicts them in the file. Raises UnrefuseError, in
    one line, for a file that cannot be read and for bad values.
    """
    values = {**defaults, **(_read(file) if file else {})}
    named, over = _given(overrides.pop("kernel", {})), _given(overrides)
    values = {key: value for key, value in values.items() if not _displaced(key, named, over)}
    kernel = values.get("kernel") or {}
    if isinstance(kernel, dict):  # else it is told as any bad value
        kept = {key: value for key, value in kernel.items() if not _displaced(key, named, over)}
        if kernel or named:
            values["kernel"] = kept | named
    return make_config(values | over)


# A setting of a file gives way where one of these is named over it.
DISPLACES = {
    "profile": ("style", "file"),
    "style": ("profile", "file"),
    "peak": ("file",),
    "width": ("file",),
    "file": ("profile", "style", "peak", "width", "tune"),
    "tune": ("file", "strength"),
    "strength": ("tune",),
}


def _displaced(key: str, *named: dict[str, Any]) -> bool:
    return any(key in DISPLACES.get(name, ()) for given in named for name in given)


def validated(config: RunConfig) -> RunConfig:
    """The same configuration, validated: what `model_copy` and `model_construct` make is not.

    Raises UnrefuseError, in one line, for bad values.
    """
    return make_config(config.model_dump(warnings=False))


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of these settings. Raises UnrefuseError, in one line, for bad values."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UnrefuseError("; ".join(_say(e) for e in error.errors()[:3])) from None


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _read(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        values = parse_json(text) if file.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnrefuseError(f"cannot read the configuration {file}: {error}") from None
    if isinstance(values, dict):  # run.json holds the resolved configuration beside the figures
        values = values.get("config", values)
    if not isinstance(values, dict):
        raise UnrefuseError(f"the configuration {file} is not a table of settings")
    return values


def _say(error: Any) -> str:
    # Between the names pydantic says which kind of a union it tried.
    parts = [str(part) for part in error["loc"]]
    where = ".".join(part for part in parts if part.isidentifier() or part.isdigit())
    message = error["msg"].removeprefix("Value error, ")
    # A rule about several settings is given all of them, and its message names them.
    has_input = error["type"] != "missing" and not isinstance(error["input"], dict)
    given = f" (given: {error['input']!r})" if has_input else ""
    return f"{where}: {message}{given}" if where else message

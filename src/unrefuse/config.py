"""The one configuration of a run: the same from the command line, TOML, run.json and Python."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unrefuse.errors import UnrefuseError
from unrefuse.textfile import parse_json, read_text

Profile = Literal["default", "early_focus", "late_focus", "broad", "narrow"]
Style = Literal["conservative", "standard", "aggressive"]
Method = Literal["selective", "ablate"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
THINKING_TOKENS = 2048

# The keep set has no off switch, and a floor near 0 would be one.
LEAST_FLOOR = 0.80
# A shorter reply hides an answer that comes after a refusal.
REPLY_TOKENS = 100


class KernelConfig(BaseModel):
    """Which weight kernel a run uses. Nothing named: the preset or size class of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    profile: Profile | None = Field(None, description="named kernel")
    style: Style | None = Field(None, description="named kernel, by how hard it acts")
    file: Path | None = Field(None, description="custom kernel: a file with one weight per layer")
    peak: float | None = Field(None, ge=0, le=1, description="position of the peak, 0 to 1")
    width: float | None = Field(None, gt=0, description="width of the Gaussian, in depth")
    threshold: float = Field(0.1, ge=0, le=1, description="weights under it become 0")

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


class RunConfig(BaseModel):
    """Everything that decides a run. Frozen; a contradiction is an error before a model loads."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    model: str = Field(min_length=1, description="local folder, hub name, or 'demo'")
    out: Path | None = Field(None, description="folder for the edited model: new or empty")
    revision: str | None = Field(None, description="revision of a hub model")

    target: str = Field("shipped", description="harmless prompts that are refused today")
    baseline: str = Field("shipped", description="harmless prompts that are answered today")
    keep: str = Field(
        "shipped", description="harmful prompts whose refusal must stay, beside the shipped ones"
    )
    test_target: str | None = Field(None, description="target prompts for the last step only")
    test_baseline: str | None = Field(None, description="baseline prompts for the last step only")
    test_keep: str | None = Field(
        None, description="keep prompts for the last step only, beside the shipped ones"
    )
    column: str = Field("prompt", description="column of a CSV, Parquet, JSON Lines or data set")
    data_split: str = Field("train", description="split of a data set named for `datasets`")
    languages: tuple[str, ...] = Field((), description="only prompts in these languages")
    pairs: Path | None = Field(None, description="matched pairs of one's own, beside the shipped")
    imports: tuple[str, ...] = Field((), description="public data sets, each FORMAT:FILE")
    limit: int | None = Field(
        None,
        ge=16,
        description="at most this many per set and split (keep: twice, train: 4 times); of the "
        "shipped keep prompts and of one's own alike",
    )

    method: Method = Field(
        "selective", description="selective: write where a probe reads alarm; ablate: everywhere"
    )
    kernel: KernelConfig = KernelConfig()
    harmful: float = Field(-0.4, ge=-2, le=0, description="what the probe is to read from harm")
    ridge: float = Field(0.02, gt=0, le=10, description="strength of the probe's ridge penalty")
    protect: float = Field(
        1.0, ge=0, le=1, description="ablate: share of keep's direction left in place"
    )
    strength: float | None = Field(None, gt=0, le=3, description="one stage with this multiplier")
    preserve_norm: bool = Field(False, description="rows of edited matrices keep their length")
    first_multiplier: float = Field(0.5, gt=0, description="multiplier of the first stage")
    multiplier_step: float = Field(0.15, gt=0, description="rise of the multiplier per stage")
    max_multiplier: float = Field(2.0, gt=0, le=3, description="no stage above it")

    tune: Literal["grid", "optuna"] | None = Field(
        None, description="how the edit is tuned; None: one kernel in stages"
    )
    trials: int = Field(40, ge=1, le=100_000, description="trials of optuna")
    resume: bool = Field(False, description="go on with the tuning run of an earlier process")

    removal_target: float = Field(0.80, gt=0, le=1, description="stop raising at this removal")
    quality_floor: float = Field(0.70, ge=0, le=1, description="no edit below this quality")
    retention_floor: float = Field(
        0.95, ge=LEAST_FLOOR, le=1, description="no edit below this retention"
    )
    retention_bound: float = Field(
        0.90,
        ge=LEAST_FLOOR,
        lt=1,
        description="no edit whose retention has a 95 % lower bound under this",
    )

    reply_tokens: int = Field(
        REPLY_TOKENS,
        ge=8,
        le=512,
        description="tokens of a reply in the final test, of an edit 100 or more; a search reads "
        "fewer",
    )
    thinking_tokens: int = Field(
        THINKING_TOKENS, ge=8, description="tokens that a model may think before a reply"
    )
    judge: str = Field(
        "builtin", description="who grades the final replies: builtin, hf:NAME, openai:URL#MODEL"
    )
    judge_label: str | None = Field(None, description="a classifier's label that means refused")
    judge_input: str | None = Field(None, description="what it reads; None: '{reply}'")
    seed: int = Field(0, ge=0)
    backend: Literal["torch", "vllm"] = Field("torch", description="what writes the replies")
    dtype: Dtype = Field("auto", description="computing precision")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    batch_size: int | None = Field(None, ge=1, description="prompts at once; found by itself")
    model_sha256: str | None = Field(None, description="stop unless the weights have this hash")
    prompts_sha256: str | None = Field(None, description="stop unless the prompts have this hash")
    allow_pickle: bool = Field(False, description="read .bin checkpoints (pickle can run code)")
    trust_remote_code: bool = Field(False, description="run Python code that a model ships")
    dequantize: bool = Field(False, description="edit a full copy of an FP8 or MXFP4 checkpoint")
    probe: bool = Field(False, description="edit what a probe finds in an unknown architecture")
    stream: bool = Field(False, description="run block by block from disk: needs little memory")
    device_map: Literal["auto"] | None = Field(
        None, description="auto: accelerate spreads the model over the devices"
    )

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

    @model_validator(mode="after")
    def _stages(self) -> Self:
        if self.first_multiplier > self.max_multiplier:
            raise ValueError("first_multiplier is above max_multiplier: no stage would run")
        if self.tune == "optuna" and self.strength is not None:
            raise ValueError("tuning finds the strength: leave out one of tune and strength")
        if self.tune and self.kernel.file:
            raise ValueError("a kernel file is not tuned: leave out one of tune and kernel file")
        if self.preserve_norm and self.method != "ablate":
            raise ValueError("preserve_norm is for the method ablate")
        if self.resume and not self.tune:
            raise ValueError("resume goes on with a tuning run: name the method, --tune")
        if self.backend == "vllm" and (self.stream or self.device_map or self.device != "auto"):
            raise ValueError("vLLM finds its device by itself: leave out device and stream")
        if self.stream and self.tune:
            raise ValueError("tuning runs a model too often to stream it: leave out stream or tune")
        if self.stream and self.device_map:
            raise ValueError("stream and device_map are two ways to hold a model: leave out one")
        return self


def load_config(file: Path | None = None, **overrides: Any) -> RunConfig:
    """The configuration of `file` (TOML, JSON or a run.json), with `overrides` on top.

    `kernel` in `overrides` is a mapping that is merged over the file's. Overrides of None do not
    count; the others take the place of what contradicts them in the file. Raises UnrefuseError, in
    one line, for a file that cannot be read and for bad values.
    """
    values = _read(file) if file else {}
    named, over = _given(overrides.pop("kernel", {})), _given(overrides)
    values = {key: value for key, value in values.items() if not _displaced(key, named, over)}
    kernel = values.get("kernel") or {}
    if isinstance(kernel, dict):  # else it is told as any bad value
        kept = {key: value for key, value in kernel.items() if not _displaced(key, named, over)}
        values["kernel"] = kept | named
    values |= over
    return _validated(values)


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
    return _validated(config.model_dump(warnings=False))


def _validated(values: dict[str, Any]) -> RunConfig:
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
    if not isinstance(values, dict):
        raise UnrefuseError(f"the configuration {file} is not a table of settings")
    # run.json holds the resolved configuration beside the figures.
    return dict(values["config"] if isinstance(values.get("config"), dict) else values)


def _say(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    # A rule about several settings is given all of them, and its message names them.
    told = error["type"] != "missing" and not isinstance(error["input"], dict)
    given = f" (given: {error['input']!r})" if told else ""
    return f"{where}: {message}{given}" if where else message

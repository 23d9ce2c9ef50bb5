"""The options that commands share, type and help each said once, and the settings they make."""

from pathlib import Path
from typing import Annotated, Any

import typer

ModelName = Annotated[
    str | None, typer.Argument(help="A local folder, a hub name, or 'demo'.", metavar="MODEL")
]
Config = Annotated[
    Path | None, typer.Option("--config", help="TOML, or the run.json of a run to repeat.")
]
Profile = Annotated[
    str | None, typer.Option(help="default, early_focus, late_focus, broad or narrow.")
]
Style = Annotated[str | None, typer.Option(help="conservative, standard or aggressive.")]
Peak = Annotated[float | None, typer.Option(help="Centre of the kernel, 0 to 1 of the depth.")]
Width = Annotated[float | None, typer.Option(help="Width of the kernel.")]
Threshold = Annotated[float | None, typer.Option(help="Weights under it are 0. Default 0.1.")]
KernelFile = Annotated[Path | None, typer.Option("--kernel", help="File, one weight per layer.")]
Target = Annotated[str | None, typer.Option(help="Harmless prompts that are refused today.")]
Baseline = Annotated[str | None, typer.Option(help="Harmless prompts that are answered today.")]
Keep = Annotated[
    str | None, typer.Option(help="Harmful prompts beside the shipped ones: their refusal stays.")
]
Column = Annotated[str | None, typer.Option(help="Column of a file or data set. Default prompt.")]
DataSplit = Annotated[str | None, typer.Option("--split", help="Split of a data set by name.")]
Lang = Annotated[list[str] | None, typer.Option(help="Only this language; may be repeated.")]
Limit = Annotated[
    int | None,
    typer.Option(help="At most so many per set and split (keep: twice; train: 4 times)."),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="selective: only where a prompt just sounds harmful (default). ablate: everywhere."
    ),
]
Pairs = Annotated[
    Path | None,
    typer.Option(help="Matched pairs of your own: a file with the columns harmless and harmful."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        help="A public data set, FORMAT:FILE, as xstest:FILE; may be repeated.",
        metavar="FORMAT:FILE",
    ),
]
Protect = Annotated[
    float | None,
    typer.Option(help="With ablate: share of keep's direction that stays, 0 to 1. Default 1."),
]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Backend = Annotated[
    str | None, typer.Option(help="torch, or vllm: replies only, no divergence. Default torch.")
]
BatchSize = Annotated[int | None, typer.Option(help="Prompts at once. Default: by memory.")]
Seed = Annotated[int | None, typer.Option(help="Seed of splits and intervals. Default 0.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
AllowPickle = Annotated[bool | None, typer.Option("--allow-pickle", help="Read .bin weights.")]
TrustRemoteCode = Annotated[
    bool | None, typer.Option("--trust-remote-code", help="Run Python code of the model.")
]
Dequantize = Annotated[
    bool | None, typer.Option("--dequantize", help="Edit a full copy of FP8 or MXFP4 weights.")
]
Probe = Annotated[
    bool | None, typer.Option("--probe", help="Edit what a probe finds in an unknown architecture.")
]
PreserveNorm = Annotated[
    bool | None,
    typer.Option("--preserve-norm", help="With ablate: rows keep their length."),
]
Stream = Annotated[
    bool | None,
    typer.Option("--stream", help="Run block by block from disk: for a model beyond memory."),
]
DeviceMap = Annotated[
    str | None, typer.Option(help="auto: accelerate spreads the model over the devices.")
]
Trials = Annotated[int | None, typer.Option(help="Of optuna. Default 40.")]
Resume = Annotated[bool | None, typer.Option("--resume", help="Go on with a run that was stopped.")]
RemovalTarget = Annotated[float | None, typer.Option(help="Enough. Default 0.80.")]
QualityFloor = Annotated[
    float | None, typer.Option(help="Default 0.70; its interval begins at 0.10 less, or above.")
]
RetentionFloor = Annotated[
    float | None, typer.Option(help="0.80 to 1; it has no off switch. Default 0.95.")
]
RetentionBound = Annotated[
    float | None,
    typer.Option(help="0.80 to 1: floor of its lower bound (one-sided 95 %). Default 0.90."),
]
ReplyTokens = Annotated[
    int | None,
    typer.Option(help="Tokens of a reply in the final test; of an edit 100, the default, or more."),
]
ThinkingTokens = Annotated[
    int | None, typer.Option(help="Most tokens of thoughts before a reply. Default 2048.")
]
JudgeName = Annotated[
    str | None,
    typer.Option(
        "--judge", help="Who grades the final replies: builtin, hf:NAME or openai:URL#MODEL."
    ),
]
JudgeLabel = Annotated[
    str | None, typer.Option(help="With hf: the classifier's label that means refused.")
]
JudgeInput = Annotated[
    str | None, typer.Option(help="With hf: what it reads. Default '{reply}'; {prompt} too.")
]
TestFile = Annotated[str | None, typer.Option(help="For the last step only.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]

KERNEL_KEYS = ("profile", "style", "peak", "width", "threshold")


def settings_of(given: dict[str, Any]) -> Any:
    """The RunConfig of a command's options, over its --config file."""
    from unrefuse.config import RunConfig, load_config
    from unrefuse.errors import UnrefuseError

    if given["model"] is None and given["config"] is None:
        raise UnrefuseError("name a MODEL: a local folder, a hub name, or demo")
    names = set(RunConfig.model_fields) - {"kernel"}
    values = {key: value for key, value in given.items() if key in names}
    values |= {
        "data_split": given["split"],
        "languages": given["lang"] or None,
        "kernel": {key: given.get(key) for key in KERNEL_KEYS} | {"file": given.get("kernel")},
    }
    return load_config(given["config"], **values)


def kernel_settings(given: dict[str, Any]) -> Any:
    """The KernelConfig of a command's options."""
    from unrefuse.config import load_config

    kernel = {key: given[key] for key in KERNEL_KEYS} | {"file": given["kernel"]}
    return load_config(model="none", kernel=kernel).kernel

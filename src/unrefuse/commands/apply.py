"""`unrefuse apply`: an edit that was measured before, written into a checkpoint on disk."""

from pathlib import Path
from typing import Annotated

import typer

from unrefuse.commands.options import (
    AllowPickle,
    Dequantize,
    Device,
    Json,
    PreserveNorm,
    Revision,
    TrustRemoteCode,
)
from unrefuse.commands.output import print_json, say_scaled, tell


def apply(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A saved model, a tuning run, or a plan file.")
    ],
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Its original: a local folder or a hub name.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the edited model.")],
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link files that do not change: they stay shared.")
    ] = False,
    preserve_norm: PreserveNorm = None,
    revision: Revision = None,
    device: Device = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    dequantize: Dequantize = None,
    as_json: Json = False,
) -> None:
    """Write the edit of RUN into a copy of MODEL on disk, without loading the model."""
    from unrefuse.config import load_config
    from unrefuse.jobs.save import apply_plan

    config = load_config(
        model=model,
        out=out,
        revision=revision,
        device=device or "cpu",
        preserve_norm=preserve_norm,
        method="ablate" if preserve_norm else None,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        dequantize=dequantize,
    )
    written = apply_plan(run, config, link)
    if written["scale"] != 1:
        say_scaled(run, written["scale"])
    if as_json:
        print_json(written)
    else:
        norm = ", rows keep their length" if written["preserve_norm"] else ""
        tell(f"edited {written['matrices']} matrices{norm}; saved: {out}")

"""`unrefuse apply`: an edit that was measured before, written into a checkpoint on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unrefuse.commands.options import Json, takes
from unrefuse.commands.output import print_json, print_out, warn_scaled

if TYPE_CHECKING:
    from unrefuse.config import RunConfig


@takes(
    *("model", "out", "device", "preserve_norm"),
    without=("discover",),
    defaults={"device": "cpu", "method": "ablate"},
)
def apply(
    settings: "RunConfig",
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A saved model, a tuning run, or a plan file.")
    ],
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link unchanged files: they stay shared with MODEL.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the edit of RUN into a copy of MODEL on disk, without loading the model."""
    from unrefuse.jobs.save import apply_plan

    written = apply_plan(run, settings, link)
    if written["scale"] != 1:
        warn_scaled(run, written["scale"])
    if as_json:
        print_json(written)
    else:
        norm = ", rows keep their length" if written["preserve_norm"] else ""
        print_out(f"edited {written['matrices']} matrices{norm}; saved: {settings.out}")

"""`unrefuse verify`: whether a saved model is as it was written."""

from pathlib import Path
from typing import Annotated

import typer

from unrefuse.commands.options import Json
from unrefuse.commands.output import print_json, print_out
from unrefuse.errors import one_line


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved model.")],
    as_json: Json = False,
) -> None:
    """Check a saved model: files against SHA256SUMS, card against run.json. Exit 2 on a fault."""
    from unrefuse.report.seal import find_faults

    faults = find_faults(folder)
    if as_json:
        print_json({"folder": str(folder), "faults": faults})
    else:
        for fault in faults:
            print_out(one_line(fault))
        print_out(f"{folder}: {len(faults) or 'no'} fault{'s' * (len(faults) != 1)}")
    if faults:
        raise typer.Exit(2)

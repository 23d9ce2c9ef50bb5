"""`unrefuse diagnose`: what a run lacks, and the command to run next."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.commands.options import Json
from unrefuse.commands.output import print_err, print_json, print_out, show


def diagnose(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a run of `edit` or `tune`, even if it saved nothing."
        ),
    ],
    apply: Annotated[bool, typer.Option("--apply", help="Run the first command.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="New folder for the next run. Default: RUN-2.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a run lacks, judged by its search split only, and the command to run next."""
    from unrefuse.jobs.diagnose import apply as run_next
    from unrefuse.jobs.diagnose import diagnose as read

    found = read(run, out)
    if not as_json:
        _print(found)
    result = run_next(found) if apply else None
    if as_json:
        print_json(found.to_json() | {"result": result and result.to_json()})
    elif result:
        from unrefuse.report.results import result_table

        show(result_table(result))
        print_out(f"saved: {found.out}" if result.saved else "nothing was saved")
    elif apply:
        print_out("no finding has a command to run")
    for reason in result.reasons if result else ():
        print_err(reason)
    if result and not result.saved:
        raise typer.Exit(1)


def _print(found: Any) -> None:
    for number, finding in enumerate(found.findings, start=1):
        print_out(f"{number}. {finding.name}: {finding.fact}")
        print_out(f"   {finding.do}")
        for command in found.commands(finding):
            print_out(f"   $ {command}")
    if not found.findings:
        print_out(
            "nothing to improve: removal is at its target on the search split, and the floors hold"
        )

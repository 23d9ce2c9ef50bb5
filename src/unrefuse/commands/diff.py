"""`unrefuse diff`: what differs between two checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.commands.options import Json
from unrefuse.commands.output import print_json, print_out, show
from unrefuse.errors import one_line


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of one, such as the original.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of the other, such as the edit.")],
    plan: Annotated[
        Path | None,
        typer.Option(help="A run's folder or plan: show how much of B - A lies along it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which tensors differ between two checkpoints: how much, and at what rank."""
    from unrefuse.edits.difference import difference
    from unrefuse.edits.recipe import read_plan
    from unrefuse.models.demo import folder_of

    folders = folder_of(a), folder_of(b)
    found = difference(*folders, read_plan(plan)[0] if plan else None)
    if as_json:
        print_json(_json(found))
        return
    if found.changed:
        show(_table(found))
    names = [
        (f"only in {a}", found.only_a),
        (f"only in {b}", found.only_b),
        ("of another shape", found.other_shape),
    ]
    for what, which in names:
        for name in which:
            print_out(one_line(f"{what}: {name}"))
    print_out(f"{len(found.changed)} tensors differ, {found.same} are equal")
    if found.along is not None:
        from unrefuse.report.terminal import number

        print_out(
            f"{number(found.along, '.1%')} of the whole change lies along the plan's directions"
        )


def _table(found: Any) -> Any:
    from unrefuse.edits.difference import MAX_RANK
    from unrefuse.report.terminal import Table, number

    table = Table("tensor", "shape", "|B-A| / |A|", "rank", "along the plan")
    for c in found.changed:
        shape = " × ".join(map(str, c.shape))
        rank = "–" if c.rank is None else f"{'≥ ' if c.rank == MAX_RANK else ''}{c.rank}"
        along = number(c.along, ".1%")
        table.add_row(one_line(c.name), shape, number(c.relative, ".2e"), rank, along)
    return table


def _json(found: Any) -> dict[str, Any]:
    from unrefuse.edits.difference import MAX_RANK

    keys = ("name", "shape", "relative", "rank", "along")
    return {
        "same": found.same,
        "changed": [{key: getattr(c, key) for key in keys} for c in found.changed],
        "only_a": found.only_a,
        "only_b": found.only_b,
        "other_shape": found.other_shape,
        "along": found.along,
        "largest_rank_counted": MAX_RANK,
    }

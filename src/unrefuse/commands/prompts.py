"""`unrefuse prompts`: list, show and check prompt sets."""

from typing import TYPE_CHECKING, Annotated

import typer

from unrefuse.commands.options import NO_MODEL, Command, Json, takes
from unrefuse.commands.output import print_json, print_out, show

if TYPE_CHECKING:
    from unrefuse.config import RunConfig

app = typer.Typer(no_args_is_help=True, help="List, show and check prompt sets.")


@app.command("list", cls=Command)
def list_prompts(as_json: Json = False) -> None:
    """Count the prompts of the shipped sets by set, split and language."""
    from collections import Counter

    from unrefuse.prompts.sets import SETS, read_set
    from unrefuse.report.terminal import Table

    shipped = [p for name in SETS for p in read_set("shipped", name)]
    planted = read_set("planted", "target")
    rows = Counter((p.source, p.set, p.split, p.lang) for p in [*shipped, *planted])
    if as_json:
        keys = ("source", "set", "split", "lang")
        print_json({"sets": [dict(zip(keys, k, strict=True)) | {"n": n} for k, n in rows.items()]})
        return
    table = Table("source", "set", "split", "language", "prompts")
    for key, n in sorted(rows.items()):
        table.add_row(*key, str(n))
    show(table)


@app.command("show", cls=Command)
@takes("column", "data_split", defaults={"model": NO_MODEL})
def show_prompts(
    settings: "RunConfig",
    source: Annotated[str, typer.Argument(help="target, baseline, keep, planted or a file.")],
    as_json: Json = False,
) -> None:
    """Print the prompts of a shipped set or of a file."""
    from unrefuse.prompts.sets import SETS, read_set
    from unrefuse.report.terminal import plain

    where = "shipped" if source in SETS else source
    name = source if source in SETS else "target"
    prompts = read_set(where, name, settings.column, settings.data_split)
    if as_json:
        print_json({"prompts": [vars(p) for p in prompts]})
        return
    for p in prompts:
        print_out("\t".join(map(plain, (p.split, p.lang, p.topic, p.text))))


@app.command("check", cls=Command)
@takes("target", "baseline", "keep", "column", "data_split", defaults={"model": NO_MODEL})
def check_prompts(settings: "RunConfig", as_json: Json = False) -> None:
    """Check prompt files for empty lines, duplicates, and a prompt in two sets. Exit 2 on any."""
    from unrefuse.prompts.sets import SETS, SHIPPED, beside_shipped, find_problems, read_set

    how = settings.column, settings.data_split
    places = {name: getattr(settings, name) for name in SETS} | {"keep": SHIPPED}
    prompts = [p for name, place in places.items() for p in read_set(place, name, *how)]
    if settings.keep != SHIPPED:
        prompts += beside_shipped(read_set(settings.keep, "keep", *how))
    problems = find_problems(prompts)
    if as_json:
        print_json({"prompts": len(prompts), "problems": problems})
    else:
        for problem in problems:
            print_out(problem)
        print_out(f"{len(prompts)} prompts, {len(problems)} problems")
    if problems:
        raise typer.Exit(2)

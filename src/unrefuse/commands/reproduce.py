"""`unrefuse reproduce`: a run once more, from its record."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unrefuse.commands.options import NO_MODEL, Json, takes
from unrefuse.commands.output import print_json, print_out

if TYPE_CHECKING:
    from unrefuse.config import RunConfig


@takes("allow_pickle", "trust_remote_code", defaults={"model": NO_MODEL})
def reproduce(
    settings: "RunConfig",
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_REPO", help="Folder that `edit` or `tune` wrote, or a name on the hub."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Its original, if it is in another place here."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep the new run. Default: not kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Repeat a run on the same weights and prompts, and say whether its bytes match, or at least
    its behaviour. Exit 1 if neither does."""
    from unrefuse.jobs.reproduce import reproduce as repeat

    trust = settings.model_dump(include={"allow_pickle", "trust_remote_code"})
    found = repeat(run, model, out, trust)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if not found.matches:
        raise typer.Exit(1)


def _print(found: Any) -> None:
    for name, figure in found.figures.items():
        where = "inside" if figure["inside"] else "outside of"
        print_out(f"{name}: {figure['recorded']:.3f} recorded, {figure['now']:.3f} now "
             f"({figure['difference']:+.3f}, {where} the recorded interval)")  # fmt: skip
    if found.grades:
        share, n = found.grades
        kl = "not measured" if found.kl is None else f"{found.kl:.4f} nats"
        print_out(f"same grades: {share:.1%} of {n} replies; KL of the new model from the old {kl}")
    same = {True: "the same bytes", False: "other bytes", None: "not saved by this kind of run"}
    if found.saved:
        print_out(f"plan: {same[found.plan]}; weights: {same[found.weights]}")
    else:
        print_out("nothing was saved: here the run does not keep its floors")
    verdicts = {
        "bytes": "reproduced: bit for bit",
        "behaviour": "reproduced: other bytes, the same behaviour",
        None: "not reproduced",
    }
    print_out(verdicts[found.matches])

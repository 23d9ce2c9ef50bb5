"""`unrefuse edit` and `unrefuse tune`: the main job."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from unrefuse.commands import output
from unrefuse.commands.options import Json, takes
from unrefuse.commands.output import print_err, print_json, print_out, show

if TYPE_CHECKING:
    from unrefuse.config import RunConfig
    from unrefuse.report.results import Result

ALL = ("config", "model", "prompts", "edit", "search", "floors", "run", "output")


@takes(*ALL, without=("backend",))
def edit(settings: "RunConfig", as_json: Json = False) -> None:
    """Measure MODEL, edit it in stages or by tuning, test the edit, save it to a new folder."""
    from unrefuse import api

    with _to_go_on(settings):
        result = api.edit(settings)
    where = f"{settings.out}/README.md (card), {settings.out}/run.json (record)"
    words = ["evaluate", str(settings.out), "--against", settings.model, "--judge", settings.judge]
    again = f"to grade the rest, run `unrefuse {shlex.join(words)} --out DIR` with the same prompts"
    _report(result, where, as_json, f"; {again}")


@takes(
    *ALL,
    without=("backend", "strength", "preserve_norm", "stream"),
    defaults={"tune": "optuna"},
)
def tune(settings: "RunConfig", as_json: Json = False) -> None:
    """Find the kernel and the plan of an edit; `edit --kernel OUT/kernel.json` applies them."""
    from unrefuse import api

    with _to_go_on(settings):
        result = api.tune(settings)
    _report(result, f"{settings.out}/kernel.json, for `unrefuse edit --kernel`", as_json)


@contextmanager
def _to_go_on(settings: "RunConfig") -> Iterator[None]:
    """Says, of a run that is stopped, that what it has done is kept."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        from unrefuse.metrics.record import SETTINGS

        out = settings.require_out().expanduser()
        if any((run / SETTINGS).exists() for run in (out, out.with_name(f"{out.name}.run"))):
            print_err("the work so far is kept: the same command with --resume goes on")
        raise


def _report(result: "Result", where: str, as_json: bool, again: str = "") -> None:
    """Prints a result; exit status 1 where nothing was saved, 2 where the judge failed. `again` is
    how to ask it again for what was saved."""
    from unrefuse.report.page import PAGE
    from unrefuse.report.results import example_text, result_table
    from unrefuse.report.terminal import layer_bars

    if as_json:
        print_json(result.to_json())
        for reason in result.reasons:
            print_err(reason)
    else:
        if output.verbose:
            show(result_table(result), layer_bars({"weight": result.kernel.weights}))
        show(example_text(result))
        print_out(f"\n{result.summary()}")
        if result.saved:
            print_out(f"files       {where}")
        page = (result.left or result.config.require_out()).expanduser() / PAGE
        if page.exists():
            print_out(f"report      {page}")
    if not result.saved:
        print_err(
            f"nothing was saved: the goal is not met on the {result.split} split; `unrefuse "
            f"diagnose {shlex.quote(str(result.config.out))}` says what to try"
        )
    if result.unjudged:
        reason = f"{result.unjudged}; all figures are those of the built-in detector alone"
        print_err(f"unrefuse: {reason}{again if result.saved else ''}")
    if result.unjudged or not result.saved:
        raise typer.Exit(2 if result.unjudged else 1)

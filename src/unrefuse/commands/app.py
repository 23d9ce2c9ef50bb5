"""`unrefuse app`: a page on this machine to look at a model, an edit, and past runs."""

from pathlib import Path
from typing import Annotated

import typer

from unrefuse.commands.output import print_err, print_out


def app(
    folder: Annotated[
        Path, typer.Argument(help="Folder for your prompts, corrections and edited models.")
    ] = Path(),
    port: Annotated[
        int, typer.Option(help="Port of the page; 0: any free one.", min=0, max=65535)
    ] = 0,
) -> None:
    """Open a page on this machine: look at a model, move an edit's sliders, compare, save."""
    from unrefuse.app.serve import serve
    from unrefuse.app.session import Session

    print_err("starting the page ...")

    def ready(link: str) -> None:
        print_out(f"unrefuse app: {link}\nThe link has a token: keep it to yourself. Ctrl-C ends.")

    serve(Session(folder.expanduser().resolve()), port, ready)

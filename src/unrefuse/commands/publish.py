"""`unrefuse publish`: a saved model or an adapter to the hub, first as a dry run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.commands.options import Json
from unrefuse.commands.output import print_json, print_out


def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A saved model, or an adapter of `export --lora`.")
    ],
    repo: Annotated[str, typer.Option(help="Repository on the hub, OWNER/NAME or NAME.")],
    upload: Annotated[
        bool, typer.Option("--upload", help="Upload. Without this option, it is a dry run.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Make it public. Default: private.")
    ] = False,
    replies: Annotated[
        bool, typer.Option("--replies", help="Upload files with replies to harmful prompts too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check DIR, and show which of its files would go to the hub; with --upload, upload them. The
    token comes from `hf auth login` or from HF_TOKEN in the environment; no option takes one."""
    from unrefuse.jobs.publish import plan_publication
    from unrefuse.jobs.publish import upload as send

    found = plan_publication(folder, repo, replies)
    if not as_json:
        _print(found)
    done = send(found, public) if upload else None
    if as_json:
        print_json(found.to_json() | {"uploaded": done, "public": public})
    elif done:
        print_out(f"uploaded, {'private' if done['private'] else 'public'}: {done['url']}")
    else:
        seen = "public" if public else "private"
        print_out(f"a dry run: nothing was sent. --upload sends these files to {repo} ({seen})")


def _print(found: Any) -> None:
    from rich.filesize import decimal

    from unrefuse.report.terminal import plain

    for part in found.parts:
        print_out(f"{decimal(part.size):>10}  {plain(part.name)}")
    print_out(f"{decimal(sum(p.size for p in found.parts)):>10}  {len(found.parts)} files")
    for name, e in found.figures.items():
        high = f" to {e['high']:.3f}" if "high" in e else ""
        n = f", n {e['n']}" if "n" in e else ""
        print_out(f"{name} {e['value']:.3f} ({'' if high else 'from '}{e['low']:.3f}{high}{n})")
    for name in found.left_out:
        print_out(f"left out: {plain(name)}")
    for note in found.notes:
        print_out(f"note: {plain(note)}")

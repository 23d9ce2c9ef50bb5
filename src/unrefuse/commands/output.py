"""What commands print: tables and text on stdout, or one JSON object, and lines on stderr."""

import json
from pathlib import Path
from typing import Any

import typer


def console() -> Any:
    """A rich console on stdout, imported where it is used."""
    from rich.console import Console

    return Console()


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def say(line: str) -> None:
    """One line on stderr."""
    typer.echo(line, err=True)


def say_scaled(run: Path, scale: float) -> None:
    """That less than the measured strength was written."""
    say(f"the figures of {run} are those of scale 1: at scale {scale:g} nothing was measured")

"""What commands print: tables and text on stdout, or one JSON object, and lines on stderr."""

import json
from typing import Any

import typer


def console() -> Any:
    """A rich console on stdout, imported where it is used. Names that it prints are no markup."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def say(line: str) -> None:
    """One line on stderr."""
    typer.echo(line, err=True)

"""`unrefuse doctor`: what this machine is, what is missing, and which ways a model fits."""

from typing import TYPE_CHECKING, Any

import typer

from unrefuse.commands.options import NO_MODEL, Json, takes
from unrefuse.commands.output import print_json, print_out, show
from unrefuse.errors import one_line

if TYPE_CHECKING:
    from unrefuse.config import RunConfig


@takes("model", "out", "dtype", "device", defaults={"model": NO_MODEL})
def doctor(settings: "RunConfig", as_json: Json = False) -> None:
    """Say what this machine has, what to install, and how MODEL fits. Exit 2 on a fault."""
    from unrefuse.jobs.doctor import examine

    found = examine(settings if settings.model != NO_MODEL else None, settings.out)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if found.faults:
        raise typer.Exit(2)


def _print(found: Any) -> None:
    from rich.filesize import decimal

    m = found.machine
    print_out(f"machine: {m['system']}, {m['cores']} cores, {decimal(m['memory'])} of memory, "
         f"{decimal(m['free_disk'])} free on this disk")  # fmt: skip
    for device in found.devices:
        name = f" {device['name']}" if device["name"] else ""
        print_out(f"device: {device['device']}{name}, {decimal(device['free_memory'])} free")
    print_out(
        "versions: " + ", ".join(f"{name} {number}" for name, number in found.versions.items())
    )
    for line in found.missing:
        print_out(f"not installed, needed for {line}")
    if found.model:
        print_out(_about(found.model))
    if found.modes:
        show(_table(found.modes))
    for fault in found.faults:
        print_out(f"fault: {one_line(fault)}")
    if not found.faults:
        print_out("no faults")


def _about(model: dict[str, Any]) -> str:
    from rich.filesize import decimal

    line = f"model: {model['name']}"
    if "architecture" in model:
        line += f", {model['architecture']}"
        line += "" if model["known"] else " (not in unrefuse's table: --discover)"
    if "parameters" in model:
        line += (
            f", {model['parameters'] / 1e6:.1f} M parameters, {decimal(model['stored'])} on disk"
        )
    return line if model["folder"] else f"{line}, not downloaded"


def _table(modes: list[Any]) -> Any:
    from rich.filesize import decimal

    from unrefuse.report.terminal import Table

    table = Table("way", "option", "needs", "free", "fits")
    for mode in modes:
        fits = "yes" if mode.fits else "no"
        table.add_row(mode.name, mode.option, decimal(mode.needed), decimal(mode.free), fits)
    return table

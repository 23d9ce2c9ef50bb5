"""`unrefuse doctor`: what this machine is, what is missing, and which ways a model fits."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.commands.options import (
    AllowPickle,
    Device,
    Dtype,
    Json,
    ModelName,
    Revision,
    TrustRemoteCode,
)
from unrefuse.commands.output import print_json, show, tell
from unrefuse.errors import one_line


def doctor(
    model: ModelName = None,
    out: Annotated[
        Path | None, typer.Option(help="Whether this new folder can be written, and has room.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has, what to install, and how MODEL fits. Exit 2 on a fault."""
    from unrefuse.config import load_config
    from unrefuse.jobs.doctor import examine

    config = None
    if model is not None:
        config = load_config(
            model=model,
            revision=revision,
            dtype=dtype,
            device=device,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
    found = examine(config, out)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if found.faults:
        raise typer.Exit(2)


def _print(found: Any) -> None:
    from rich.filesize import decimal

    m = found.machine
    tell(f"machine: {m['system']}, {m['cores']} cores, {decimal(m['memory'])} of memory, "
         f"{decimal(m['free_disk'])} free on this disk")  # fmt: skip
    for device in found.devices:
        name = f" {device['name']}" if device["name"] else ""
        tell(f"device: {device['device']}{name}, {decimal(device['free_memory'])} free")
    tell("versions: " + ", ".join(f"{name} {number}" for name, number in found.versions.items()))
    for line in found.missing:
        tell(f"not installed, for {line}")
    if found.model:
        tell(_about(found.model))
    if found.ways:
        show(_table(found.ways))
    for fault in found.faults:
        tell(f"fault: {one_line(fault)}")
    if not found.faults:
        tell("no faults")


def _about(model: dict[str, Any]) -> str:
    from rich.filesize import decimal

    told = f"model: {model['name']}"
    if "architecture" in model:
        told += f", {model['architecture']}"
        told += "" if model["known"] else " (not in unrefuse's table: --probe)"
    if "parameters" in model:
        told += (
            f", {model['parameters'] / 1e6:.1f} M parameters, {decimal(model['stored'])} on disk"
        )
    return told if model["folder"] else f"{told}, not downloaded"


def _table(ways: list[Any]) -> Any:
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("way", "option", "needs", "free", "fits")
    for way in ways:
        fits = "yes" if way.fits else "no"
        table.add_row(way.name, way.option, decimal(way.needed), decimal(way.free), fits)
    return table

"""`unrefuse export` and `unrefuse revert`: the edit as an adapter, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unrefuse.commands.options import Json, takes
from unrefuse.commands.output import print_err, print_json, print_out, warn_scaled

if TYPE_CHECKING:
    from unrefuse.config import RunConfig


@takes(
    *("model", "target", "column", "data_split", "languages", "limit"),
    *("seed", "dtype", "device", "device_map", "batch_size", "stream"),
)
def export(
    settings: "RunConfig",
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder or saved model, or its plan.")
    ],
    lora: Annotated[
        Path | None, typer.Option(help="New folder for a LoRA adapter: exact, for PEFT and vLLM.")
    ] = None,
    gguf_lora: Annotated[
        Path | None, typer.Option(help="New file for the adapter in GGUF: exact, for llama.cpp.")
    ] = None,
    control_vector: Annotated[
        Path | None, typer.Option(help="New GGUF file: approximate, for llama.cpp. Runs the model.")
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Share of the edit's strength, 0 to 1: 1 is what was measured.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Write the edit of RUN as an adapter for the original MODEL, or as a control vector."""
    from unrefuse.jobs.export import export_plan

    written = export_plan(run, settings, lora, gguf_lora, control_vector, scale)
    if control_vector:
        if written["lengths"][0] > 0:
            print_err(
                "llama.cpp has no control vector for layer 0: what the plan does there is left out"
            )
        print_err("a control vector only approximates the edit, and was not measured: start with "
            "--control-vector-scaled FILE:0.3")  # fmt: skip
    if written["scale"] != 1:
        warn_scaled(run, written["scale"])
    if as_json:
        print_json(written)
        return
    if lora or gguf_lora:
        matrices = f"{written['matrices']} matrices, scale {written['scale']:g}"
        print_out(f"adapter: rank {written['rank']}, {matrices}")
    for path in filter(None, (lora, gguf_lora, control_vector)):
        print_out(f"saved: {path}")


def revert(
    edited: Annotated[Path, typer.Argument(metavar="EDITED", help="Folder of the edited model.")],
    adapter: Annotated[Path, typer.Option(help="Its adapter, from `unrefuse export --lora`.")],
    out: Annotated[Path, typer.Option(help="New folder for the original's weights.")],
    original: Annotated[
        Path | None, typer.Option(help="Folder of the original, to compare with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take the edit out of EDITED again: subtract from its weights what the adapter adds."""
    from unrefuse.edits.adapters.revert import largest_difference, revert_checkpoint
    from unrefuse.jobs.save import check_out, copy_size, new_folder
    from unrefuse.models.demo import folder_of

    check_out(out)
    with new_folder(out, copy_size(edited, out)) as folder:
        names = revert_checkpoint(edited, adapter, folder)
        figures: dict[str, Any] = {"out": str(out), "tensors": len(names)}
        if original:
            largest, equal = largest_difference(folder, folder_of(original), names)
            figures |= {"largest_difference": largest, "equal_entries": equal}
    if as_json:
        print_json(figures)
        return
    print_out(f"reverted {len(names)} tensors: {out}")
    if original:
        print_out(
            f"largest difference from {original}: {largest:.2g}; {equal:.2%} of the entries are "
            "equal"
        )

"""`unrefuse export` and `unrefuse revert`: the edit as an adapter, and back."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.commands.options import (
    AllowPickle,
    BatchSize,
    Column,
    DataSplit,
    Dequantize,
    Device,
    DeviceMap,
    Dtype,
    Json,
    Lang,
    Limit,
    Probe,
    Revision,
    Seed,
    Stream,
    Target,
    TrustRemoteCode,
)
from unrefuse.commands.output import print_json, say

Original = Annotated[
    str, typer.Argument(metavar="MODEL", help="The unedited original: a folder or a hub name.")
]


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder or saved model, or its plan.")
    ],
    model: Original,
    lora: Annotated[
        Path | None, typer.Option(help="New folder for a PEFT adapter: exact; PEFT, vLLM.")
    ] = None,
    gguf_lora: Annotated[
        Path | None, typer.Option(help="New file for the adapter in GGUF: exact; llama.cpp.")
    ] = None,
    control_vector: Annotated[
        Path | None, typer.Option(help="New file, GGUF: approximate; llama.cpp. Runs the model.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Factor on the strength of the edit.")] = 1.0,
    target: Target = None,
    column: Column = None,
    split: DataSplit = None,
    lang: Lang = None,
    limit: Limit = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    batch_size: BatchSize = None,
    stream: Stream = None,
    seed: Seed = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    dequantize: Dequantize = None,
    probe: Probe = None,
    as_json: Json = False,
) -> None:
    """Write the edit of RUN as an adapter for the original MODEL, or as a control vector."""
    import math

    from unrefuse.config import load_config
    from unrefuse.edit.gguf import gguf_architecture
    from unrefuse.edit.plan import scaled
    from unrefuse.edit.recipe import read_plan
    from unrefuse.errors import UsageError
    from unrefuse.models.load import find_checkpoint, read_config
    from unrefuse.save import check_new, check_out

    if not (lora or gguf_lora or control_vector):
        raise UsageError("name a form: --lora DIR, --gguf-lora FILE or --control-vector FILE")
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"--scale must be a number above 0, not {scale:g}")
    if lora:
        check_out(lora, "--lora")
    for file in filter(None, (gguf_lora, control_vector)):
        check_new(file)
    config = load_config(
        model=model,
        target=target,
        column=column,
        data_split=split,
        languages=lang or None,
        limit=limit,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        batch_size=batch_size,
        stream=stream,
        seed=seed,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        dequantize=dequantize,
        probe=probe,
    )
    plan, made_for = read_plan(run)
    if made_for.get("preserve_norm") == "True":
        raise UsageError(
            f"the edit in {run} keeps the rows' length, which no adapter can: apply it"
        )
    if control_vector and not all(edit.of_output for edit in plan):
        raise UsageError(
            "a control vector acts on every prompt alike, and this edit does not: use --lora or "
            "--gguf-lora"
        )
    folder = find_checkpoint(config)
    if folder.resolve() in (run.resolve(), run.resolve().parent):
        raise UsageError(f"{model} is the edited model: name its original")
    hf_config = read_config(folder, config)
    if gguf_lora or control_vector:
        gguf_architecture(hf_config)
    plan = scaled(plan, scale)
    written: dict[str, Any] = {"scale": scale, "matrices": len(plan)}
    if lora or gguf_lora:
        written |= _save_adapters(
            lora,
            gguf_lora,
            folder,
            hf_config,
            plan,
            made_for | {"base": model, "scale": str(scale)},
        )
    if control_vector:
        written |= _save_vectors(control_vector, folder, config, plan)
    if scale != 1:
        say(f"the figures of {run} are those of scale 1: at scale {scale:g} nothing was measured")
    if as_json:
        print_json(written)
        return
    if lora or gguf_lora:
        typer.echo(f"adapter: rank {written['rank']}, {len(plan)} matrices, scale {scale:g}")
    for path in filter(None, (lora, gguf_lora, control_vector)):
        typer.echo(f"saved: {path}")


def _save_adapters(
    lora: Path | None,
    gguf_lora: Path | None,
    folder: Path,
    hf_config: Any,
    plan: Any,
    metadata: dict[str, str],
) -> dict[str, Any]:
    """Writes the exact forms; what the JSON output says of them."""
    import json

    from unrefuse.edit.gguf import save_gguf_lora
    from unrefuse.edit.lora import checkpoint_adapter, save_adapter
    from unrefuse.edit.plan import save_plan
    from unrefuse.edit.recipe import PLAN
    from unrefuse.save import new_file, new_folder

    adapter = checkpoint_adapter(folder, plan)
    if gguf_lora:
        with new_file(gguf_lora) as file:
            save_gguf_lora(adapter, hf_config, file)
    if lora:
        with new_folder(lora) as new:
            save_adapter(adapter, new, metadata["base"])
            # what `revert` checks against
            save_plan(plan, new / PLAN.name, metadata | {"along": json.dumps(adapter.along)})
    paths = {"lora": lora, "gguf_lora": gguf_lora}
    return {"rank": adapter.rank} | {key: str(path) for key, path in paths.items() if path}


def _save_vectors(file: Path, folder: Path, config: Any, plan: Any) -> dict[str, Any]:
    """Measures and writes the control vector; what the JSON output says of it."""
    from unrefuse.edit.control import control_vectors
    from unrefuse.edit.gguf import save_control_vector
    from unrefuse.models.load import load_folder
    from unrefuse.prompts.sets import load_prompts
    from unrefuse.save import new_file

    prompts = [p.text for p in load_prompts(config) if (p.set, p.split) == ("target", "train")]
    model = load_folder(folder, config, config.model)
    vectors = control_vectors(model, plan, prompts)
    with new_file(file) as new:
        save_control_vector(vectors, model.network.config, new)
    lengths = vectors.norm(dim=1)
    if lengths[0] > 0:
        say("llama.cpp has no control vector for layer 0: what the plan does there is left out")
    say("a control vector only approximates the edit: start with --control-vector-scaled FILE:0.3")
    return {
        "control_vector": str(file),
        "prompts": len(prompts),
        "lengths": [round(length, 6) for length in lengths.tolist()],
    }


def revert(
    edited: Annotated[Path, typer.Argument(metavar="EDITED", help="Folder of the edited model.")],
    adapter: Annotated[Path, typer.Option(help="Its adapter, of `unrefuse export --lora`.")],
    out: Annotated[Path, typer.Option(help="New folder for the original's weights.")],
    original: Annotated[
        Path | None, typer.Option(help="Folder of the original, to compare with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take the edit out of EDITED again: its weights less what the adapter adds to them."""
    from unrefuse.edit.revert import largest_difference, revert_checkpoint
    from unrefuse.models.checkpoint import checkpoint_files
    from unrefuse.save import check_out, new_folder

    check_out(out)
    size = sum(file.stat().st_size for file in checkpoint_files(edited))
    with new_folder(out, size + 2**24) as folder:
        names = revert_checkpoint(edited, adapter, folder)
        figures: dict[str, Any] = {"out": str(out), "tensors": len(names)}
        if original:
            largest, equal = largest_difference(folder, original, names)
            figures |= {"largest_difference": largest, "equal_entries": equal}
    if as_json:
        print_json(figures)
        return
    typer.echo(f"reverted {len(names)} tensors: {out}")
    if original:
        typer.echo(
            f"largest difference from {original}: {largest:.2g}; {equal:.2%} of the entries are "
            "equal"
        )

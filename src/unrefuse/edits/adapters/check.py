"""An adapter beside the plan that it was made of: whether it is that edit, at full strength."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from unrefuse.edits.adapters.lora import ADAPTER, PREFIX
from unrefuse.edits.plan import MatrixEdit, Plan
from unrefuse.errors import UnrefuseError, first_line, raised_as
from unrefuse.models.files import read_object

CONFIG = "adapter_config.json"
Arrays = Mapping[str, Any]


def check_adapter(folder: Path, plan: Plan) -> None:
    """Raises UnrefuseError unless the PEFT adapter in `folder` writes what the plan writes, and
    reads what it reads where that is of no weights, in no other strength and nowhere else."""
    try:
        tensors = {name: t.numpy() for name, t in load_file(folder / ADAPTER).items()}
        config = read_object(folder / CONFIG)
        scales = {key: config.get(key) for key in ("rank_pattern", "alpha_pattern", "use_rslora")}
        alpha = config["lora_alpha"] / config["r"]
    except (OSError, ValueError, SafetensorError, LookupError, TypeError, AttributeError,
            ZeroDivisionError) as error:  # fmt: skip
        raise UnrefuseError(f"cannot read the adapter in {folder}: {first_line(error)}") from None
    if alpha != 1 or any(scales.values()):
        raise UnrefuseError(f"{folder / CONFIG} does not have the measured strength")
    names = {f"{PREFIX}{edit.module}": edit for edit in plan}
    biases = {f"{name}.lora_B.bias" for name in names}
    _check(folder / ADAPTER, tensors, names, (".lora_A.weight", ".lora_B.weight"), biases)


def check_gguf(file: Path, plan: Plan) -> None:
    """The same for an adapter in GGUF. Raises UnrefuseError for any other GGUF file: a control
    vector and a converted model were not measured in that form."""
    with raised_as(f"cannot read {file}"):
        reader = gguf.GGUFReader(file)
        fields = {name: f.contents() for name, f in reader.fields.items()}
        tensors = {t.name: np.array(t.data) for t in reader.tensors}
    if fields.get("general.type") != "adapter" or fields.get(gguf.Keys.Adapter.TYPE) != "lora":
        raise UnrefuseError(
            f"{file} is not an adapter: a control vector or a converted model was not measured in "
            "that form; take it out of the folder"
        )
    rank = plan[0].write.shape[1]
    if fields.get(gguf.Keys.Adapter.LORA_ALPHA) != rank:
        raise UnrefuseError(f"{file} does not have the measured strength")
    kinds = [k for k, n in gguf.MODEL_ARCH_NAMES.items() if n == fields["general.architecture"]]
    layers = [int(p) for edit in plan for p in edit.module.split(".") if p.isdigit()]
    known = gguf.get_tensor_name_map(kinds[0], max(layers, default=0) + 1) if kinds else None
    names = {f"{known and known.get_name(edit.module)}.weight": edit for edit in plan}
    _check(file, tensors, names, (".lora_a", ".lora_b"), set())


def _check(
    file: Path,
    tensors: Arrays,
    edits: Mapping[str, MatrixEdit],
    ends: tuple[str, str],
    more: set[str],
) -> None:
    wanted = {f"{name}{end}" for name in edits for end in ends}
    if not wanted <= tensors.keys() <= wanted | more:
        raise UnrefuseError(f"{file} edits other matrices than its plan does")
    for name, edit in edits.items():
        a, b = (tensors[f"{name}{end}"] for end in ends)
        experts = max(1, b.shape[1] // edit.write.shape[1]) if b.ndim == 2 else 1
        written = -edit.write.repeat_interleave(experts, dim=1).numpy()
        if not (np.array_equal(b, written) and (edit.of_output or np.array_equal(a, edit.read))):
            raise UnrefuseError(f"{file} is not the edit that was measured: {name} differs")

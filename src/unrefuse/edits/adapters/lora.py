"""The edit as a LoRA adapter: exact, of the rank of the plan, reversible, a few MB."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unrefuse.edits.disk.stored import read_tensor, tensor_files
from unrefuse.edits.plan import MatrixEdit, Plan
from unrefuse.edits.weights import check_fits, has_rows, planned_tensors
from unrefuse.errors import UnrefuseError, first_line

ADAPTER = "adapter_model.safetensors"
PREFIX = "base_model.model."
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Factors = dict[str, tuple[Tensor, Tensor]]  # by module: A (rank, d_in) and B (d_model, rank)


@dataclass(frozen=True)
class Adapter:
    """A plan as low-rank factors, all of one `rank`, by the name of the module.

    `biases` `(d_model,)` are what the edit adds to biases, for every module where there is any.
    `parameters` names the matrix of those modules that peft takes by parameter: experts. `along`
    holds `share_along` of the original's weights, by which `revert` knows them again.
    """

    rank: int
    factors: Factors
    biases: dict[str, Tensor]
    parameters: dict[str, str]
    along: dict[str, float]

    def check_linear(self, form: str) -> None:
        """Raises UnrefuseError where more than linear modules without a bias is edited."""
        if self.biases:
            raise UnrefuseError(f"{next(iter(self.biases))} has a bias, which {form} cannot edit")
        if self.parameters:
            raise UnrefuseError(f"{next(iter(self.parameters))}: {form} cannot edit experts")


def lora_factors(weight: Tensor, edit: MatrixEdit) -> tuple[Tensor, Tensor]:
    """`A (rank, d_in)` and `B (d_model, rank)`, float32: `W + B A` is the edited weight.

    `B = -D`, and A is what the edit reads, of an output y = W x: `A W`. Of several experts'
    matrices `(experts, ...)` it gives `A (experts rank, d_in)` and `B (d_model, rank experts)`, in
    the order of peft's ParamWrapper (`get_delta_factors`).
    """
    if not edit.of_output:
        return edit.read, -edit.write
    w = weight.float().mT if edit.transposed else weight.float()
    experts = len(w) if w.ndim == 3 else 1
    a = (edit.read.to(w.device) @ w).flatten(0, -2)
    return a, -edit.write.to(w.device).repeat_interleave(experts, dim=1)


def share_along(weight: Tensor, a: Tensor, b: Tensor) -> float:
    """`<W, B A>`: how far a weight `(d_model, d_in)` lies along what an adapter adds to it."""
    return float((b.T.double() @ weight.double() * a.double()).sum())


def plan_adapter(plan: Plan, names: Iterable[str], read: Callable[[str], Tensor]) -> Adapter:
    """The adapter of a plan, from the weights of the unedited original.

    `names` are those of the checkpoint's tensors, or of the loaded model's, and `read` gives one.
    Raises UnrefuseError where the plan is of another model, for quantised weights, and where peft
    can't express the edit: a bias beside experts, or a state space.
    """
    names = list(names)
    stored = planned_tensors(plan, names)
    of: dict[str, list[str]] = {edit.module: [] for edit in plan}
    for name, (edit, _) in stored.items():
        of[edit.module].append(name)
    # In sparse models peft takes any module down_proj for experts of transformers 4 (its
    # `_convert_peft_config_moe`), so dense layers and shared experts go by parameter too.
    sparse = any(".experts." in name for name in names)
    rank = plan[0].write.shape[1]
    factors: Factors = {}
    biases: dict[str, Tensor] = {}
    parameters: dict[str, str] = {}
    along: dict[str, float] = {}
    for edit in plan:
        # Fused kernels read a state space's out_proj past the adapter, so peft does not take it.
        if edit.module.endswith("mamba.out_proj"):
            raise UnrefuseError(
                f"{edit.module} belongs to a state space, which no adapter can edit"
            )
        if edit.parameter != "weight" or (sparse and edit.module.endswith("down_proj")):
            parameters[edit.module] = edit.parameter
        matrices = []
        for name in sorted(of[edit.module], key=lambda n: [int(i) for i in re.findall(r"\d+", n)]):
            tensor = read(name)
            if tensor.dtype not in FLOATS:
                raise UnrefuseError(
                    f"{name} is stored as {tensor.dtype}: name a model with full weights"
                )
            check_fits(name, tensor.shape, edit, stored[name][1])
            if has_rows(name):
                matrices.append(tensor)
            elif tensor.ndim == 1:
                y = tensor.detach().float().cpu()
                biases[edit.module] = -edit.write @ (edit.read @ y)
            else:
                raise UnrefuseError(f"{name} are biases of experts, which no adapter can edit")
        weight = matrices[0] if len(matrices) == 1 else torch.stack(matrices)
        a, b = lora_factors(weight.detach(), edit)
        factors[edit.module] = a.cpu(), b.cpu()
        if weight.ndim == 2 and not edit.transposed:
            along[edit.module] = share_along(weight.detach().cpu(), *factors[edit.module])
    if biases and parameters:
        raise UnrefuseError(
            f"{next(iter(biases))} has a bias, and no adapter can edit both biases and experts"
        )
    if biases:
        zeros = {edit.module: torch.zeros(len(edit.write)) for edit in plan}
        biases = zeros | biases
    return Adapter(rank, factors, biases, parameters, along)


def checkpoint_adapter(folder: Path, plan: Plan) -> Adapter:
    """`plan_adapter` of a checkpoint on disk: only the planned tensors are read, one at a time."""
    files = tensor_files(folder)
    return plan_adapter(plan, files, lambda name: read_tensor(files[name], name))


def save_adapter(
    adapter: Adapter, folder: Path, base: str = "", metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a PEFT adapter in float32: with 16 bits, `B A` would not be the edit exactly.

    `base` is the name of the model that it belongs to. Without biases and experts vLLM reads it
    too: one rank for all, no pattern, alpha equal to the rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in adapter.factors.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
    for module, bias in adapter.biases.items():
        tensors[f"{PREFIX}{module}.lora_B.bias"] = bias
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt", **(metadata or {})})
    LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.rank,
        target_modules=[m for m in adapter.factors if m not in adapter.parameters],
        target_parameters=[f"{m}.{name}" for m, name in adapter.parameters.items()] or None,
        lora_bias=bool(adapter.biases),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
    ).save_pretrained(str(folder))


def load_factors(folder: Path) -> Factors:
    """The factors of an adapter of `save_adapter`. Raises UnrefuseError for another folder, and for
    one that edits biases or experts, which can't be taken back."""
    try:
        tensors = load_file(folder / ADAPTER)
        modules = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith("A.weight")]
        factors = {
            name.removeprefix(PREFIX): (
                tensors[f"{name}.lora_A.weight"],
                tensors[f"{name}.lora_B.weight"],
            )
            for name in modules
        }
    except (OSError, SafetensorError, KeyError) as error:
        raise UnrefuseError(
            f"there is no adapter of `unrefuse export --lora` in {folder}: {first_line(error)}"
        ) from None
    if any(name.endswith(".bias") for name in tensors) or any(".experts" in m for m in factors):
        raise UnrefuseError(f"{folder} edits biases or experts, which `revert` can't undo")
    return factors

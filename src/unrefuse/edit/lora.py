"""The edit as a LoRA adapter: exact, of the rank of the plan, reversible, a few MB."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from unrefuse.edit.plan import MatrixEdit, Plan
from unrefuse.edit.stored import check_fits, read_tensor, tensor_files
from unrefuse.edit.weights import planned_tensors
from unrefuse.errors import UsageError, first_line

ADAPTER = "adapter_model.safetensors"
PREFIX = "base_model.model."
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Factors = dict[str, tuple[Tensor, Tensor]]  # by module: A (rank, d_in) and B (d_model, rank)


def lora_factors(weight: Tensor, edit: MatrixEdit) -> tuple[Tensor, Tensor]:
    """`A (rank, d_in)` and `B (d_model, rank)`, float32, with `B A = -U M U^T W`.

    With the singular values of the core, `M = P S Q^T`: `A = (U Q)^T W`, `B = -U P S`; those that
    are 0 within float32 are left out, so the rank is the core's.
    """
    p, s, qt = torch.linalg.svd(edit.core.double())
    rank = int((s > s[0] * len(s) * torch.finfo(torch.float32).eps).sum())
    u = edit.basis.double()
    left, right = (u @ p * s)[:, :rank], (u @ qt.T)[:, :rank]
    return right.T.float().to(weight.device) @ weight.float(), -left.float().to(weight.device)


def plan_factors(plan: Plan, names: Iterable[str], read: Callable[[str], Tensor]) -> Factors:
    """The factors of every matrix of a plan, from the weights of the unedited original.

    `names` are those of the checkpoint's tensors and `read` gives one. All have the plan's largest
    rank, filled with zeros: PEFT, vLLM and llama.cpp then scale each of them by 1.
    Raises UsageError where the plan is of another model, and for what no adapter can edit: a
    bias, experts that are stored as one tensor, quantised weights.
    """
    factors: Factors = {}
    for name, (edit, axis) in planned_tensors(plan, names).items():
        if name == f"{edit.module}.bias":
            raise UsageError(f"{edit.module} has a bias, which an adapter cannot edit")
        weight = read(name)
        if name != f"{edit.module}.weight" or weight.dim() != 2 or axis != 0:
            raise UsageError(f"{name} is not one linear module, which is all an adapter can edit")
        if weight.dtype not in FLOATS:
            raise UsageError(f"{name} is stored as {weight.dtype}: name the full weights")
        check_fits(name, weight, edit, axis)
        factors[edit.module] = lora_factors(weight, edit)
    rank = max(len(a) for a, _ in factors.values())
    return {
        module: (pad(a, (0, 0, 0, rank - len(a))).cpu(), pad(b, (0, rank - len(a))).cpu())
        for module, (a, b) in factors.items()
    }


def checkpoint_factors(folder: Path, plan: Plan) -> Factors:
    """`plan_factors` of a checkpoint on disk: only the planned tensors are read, one at a time."""
    files = tensor_files(folder)
    return plan_factors(plan, files, lambda name: read_tensor(files[name], name))


def save_lora(model: PreTrainedModel, plan: Plan, folder: Path) -> None:
    """Writes the plan as a PEFT adapter for `model`, which must be the unedited original.

    Raises UsageError as `plan_factors` does.
    """
    parameters = dict(model.named_parameters())
    save_adapter(plan_factors(plan, parameters, parameters.__getitem__), folder)


def save_adapter(
    factors: Factors, folder: Path, base: str = "", metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a PEFT adapter in float32: with 16 bits, `B A` would not be the edit exactly.

    `base` is the name of the model that it belongs to. vLLM reads it too: one rank for all, no
    bias, no pattern, alpha equal to the rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt", **(metadata or {})})
    rank = rank_of(factors)
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(factors),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
    ).save_pretrained(str(folder))


def load_adapter(folder: Path) -> Factors:
    """The factors of an adapter that `save_adapter` wrote. Raises UsageError for another folder."""
    try:
        tensors = load_file(folder / ADAPTER)
        modules = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith("A.weight")]
        return {
            name.removeprefix(PREFIX): (
                tensors[f"{name}.lora_A.weight"],
                tensors[f"{name}.lora_B.weight"],
            )
            for name in modules
        }
    except (OSError, SafetensorError, KeyError) as error:
        raise UsageError(
            f"there is no adapter of `unrefuse export --lora` in {folder}: {first_line(error)}"
        ) from None


def rank_of(factors: Factors) -> int:
    """The rank that all factors are stored with."""
    return len(next(iter(factors.values()))[0])

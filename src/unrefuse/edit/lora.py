"""The edit as a LoRA adapter: exact, of the rank of the plan, reversible, a few MB."""

from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.edit.plan import MatrixEdit, Plan
from unrefuse.errors import UsageError


def lora_factors(weight: Tensor, edit: MatrixEdit) -> tuple[Tensor, Tensor]:
    """`A (k, d_in)` and `B (d_model, k)`, float32, with `B A = -U M U^T W`."""
    u, m = edit.basis.to(weight.device), edit.core.to(weight.device)
    return u.T @ weight.float(), -u @ m


def save_lora(model: PreTrainedModel, plan: Plan, folder: Path) -> None:
    """Writes the plan as a PEFT adapter for `model`, which must be the unedited original.

    Raises UsageError where an edited matrix has a bias: an adapter can't change it.
    """
    tensors: dict[str, Tensor] = {}
    for edit in plan:
        module = model.get_submodule(edit.module)
        if getattr(module, "bias", None) is not None:
            raise UsageError(f"{edit.module} has a bias, which an adapter cannot edit")
        a, b = lora_factors(module.get_parameter("weight"), edit)
        tensors[f"base_model.model.{edit.module}.lora_A.weight"] = a.cpu().contiguous()
        tensors[f"base_model.model.{edit.module}.lora_B.weight"] = b.cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        r=plan[0].core.shape[0],
        lora_alpha=plan[0].core.shape[0],
        target_modules=[edit.module for edit in plan],
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(folder))

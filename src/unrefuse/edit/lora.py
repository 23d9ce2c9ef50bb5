"""The edit as a LoRA adapter: exact, of the rank of the plan, reversible, a few MB."""

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.edit.plan import MatrixEdit, Plan
from unrefuse.errors import UsageError
from unrefuse.models.architectures import bias_name
from unrefuse.models.writers import text_config, writers


def lora_factors(weight: Tensor, edit: MatrixEdit) -> tuple[Tensor, Tensor]:
    """`A (k, d_in)` and `B (d_model, k)`, float32, with `B A = -U M U^T W`.

    Of several experts' matrices `(experts, ...)` it gives `A (experts k, d_in)` and
    `B (d_model, k experts)`, in the order of peft's ParamWrapper (`get_delta_factors`).
    """
    w = weight.float().mT if edit.transposed else weight.float()
    u, m = edit.basis.to(w.device), edit.core.to(w.device)
    experts = len(w) if w.ndim == 3 else 1
    return (u.T @ w).flatten(0, -2), (-u @ m).repeat_interleave(experts, dim=1)


def save_lora(model: PreTrainedModel, plan: Plan, folder: Path) -> None:
    """Writes the plan as a PEFT adapter for `model`, which must be the unedited original.

    Experts are targeted by peft's `target_parameters`; a bias changes by that of lora_B. Raises
    UsageError where peft can't express the edit: both in one model, or a state space.
    """
    kind = text_config(model).model_type
    # Fused kernels read a state space's out_proj past the adapter, so peft does not take it.
    if kind == "falcon_h1":
        raise UsageError(f"peft has no adapters for the state-space layers of {kind}: edit weights")
    modules = [model.get_submodule(edit.module) for edit in plan]
    biases = [getattr(m, bias_name(e.parameter), None) for m, e in zip(modules, plan, strict=True)]
    biased = any(bias is not None for bias in biases)
    sparse = any(writer.parameter != "weight" for writer in writers(model))
    # In sparse models peft takes any module down_proj for experts of transformers 4 (its
    # `_convert_peft_config_moe`), so dense layers and shared experts go by parameter too.
    by_parameter = [
        e.module
        for e in plan
        if e.parameter != "weight" or (sparse and e.module.endswith("down_proj"))
    ]
    if by_parameter and biased:
        raise UsageError(f"an adapter can't edit the biases of {kind}'s experts: edit the weights")
    tensors: dict[str, Tensor] = {}
    for edit, module, bias in zip(plan, modules, biases, strict=True):
        a, b = lora_factors(module.get_parameter(edit.parameter), edit)
        key = f"base_model.model.{edit.module}"
        tensors[f"{key}.lora_A.weight"] = a.cpu().contiguous()
        tensors[f"{key}.lora_B.weight"] = b.cpu().contiguous()
        if biased:
            y = torch.zeros(len(b)) if bias is None else bias.detach().float().cpu()
            tensors[f"{key}.lora_B.bias"] = -edit.basis @ (edit.core @ (edit.basis.T @ y))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        r=plan[0].core.shape[0],
        lora_alpha=plan[0].core.shape[0],
        target_modules=[edit.module for edit in plan if edit.module not in by_parameter],
        target_parameters=[
            f"{edit.module}.{edit.parameter}" for edit in plan if edit.module in by_parameter
        ]
        or None,
        lora_bias=biased,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(folder))

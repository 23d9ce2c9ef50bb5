"""The device of a run, what it is fast at, and how much memory is free on it."""

import gc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from unrefuse.errors import UnrefuseError, first_line

CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; page cache that can be dropped counts.

    As the system, a control group and a resource limit allow.
    """
    if device.type == "cuda":
        # What torch holds and does not use, it uses first.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = [int(psutil.virtual_memory().available)]
    with suppress(OSError, ValueError):  # no control group, or "max": no limit
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free.append(limit - used + int(stat["inactive_file"]))
    if psutil.LINUX:
        process = psutil.Process()
        limit = process.rlimit(psutil.RLIMIT_DATA)[0]
        if limit != psutil.RLIM_INFINITY:
            free.append(limit - process.memory_info().data)
    return max(0, min(free))


def release_memory() -> None:
    """Gives back what nothing holds any more: networks that refer to themselves, and the blocks
    that torch keeps of an accelerator's memory."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def is_spread(network: nn.Module) -> bool:
    """Whether accelerate has put a network on several devices."""
    return len(set(getattr(network, "hf_device_map", {}).values())) > 1


def check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raises UnrefuseError where not all `values`, computed in `dtype`, are finite numbers."""
    if not bool(torch.isfinite(values).all()):
        raise not_finite(what, dtype)


def not_finite(what: str, dtype: torch.dtype) -> UnrefuseError:
    """What to do where numbers are not finite: float16 ends at 65504, where models that were made
    in bfloat16 often go on; elsewhere the model itself is at fault."""
    name = str(dtype).removeprefix("torch.")
    damaged = "the model's weights, config or code are damaged"
    if dtype == torch.float16:
        do = "it ends at 65504, and this model goes further: compute in --dtype bfloat16 or float32"
    elif dtype == torch.bfloat16:
        do = f"{damaged}, unless --dtype float32 helps"
    else:
        do = damaged
    return UnrefuseError(f"{what} are not all finite in {name}: {do}")


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA (or ROCm), then Apple's MPS, then the CPU. Raises UnrefuseError."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` has tensors, and no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnrefuseError(
            f"there is no device {name!r} on this machine: {first_line(error)}"
        ) from None
    return device


def choose_dtype(name: str, device: torch.device, size: int = 0) -> torch.dtype:
    """`auto`: bfloat16 where the device multiplies it faster than float32, else float32.

    On a CPU only matrix units (AMX, Arm's BF16) do: with AVX-512 torch 2.13 gives 170 GFLOP/s in
    bfloat16 and 320 in float32 (2 cores, 512 rows of Qwen2.5-0.5B's MLP). There bfloat16 is for
    a checkpoint of `size` bytes that in float32, at most twice that, would take half the memory.
    """
    if name != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[name]
    if device.type == "cpu":
        can: Mapping[str, Any] = torch.cpu.get_capabilities()
        fits = 2 * size < free_memory(device) / 2
        fast = not fits or bool(can.get("amx_bf16") or can.get("bf16"))
    elif device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32

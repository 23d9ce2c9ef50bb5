"""Models larger than memory: one block at a time is in memory, and one read of it serves all.

Each job (a batch under one edit) runs the model's own forward, and stops before every block until
all the others stand there too. Then the block's weights, read ahead by a thread, take the place
of those of the block before, and each job in turn goes through it. So masks, rotary embeddings,
caches and hooks are those of a model in memory, and nothing else in this package needs to know.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from unrefuse.errors import UnrefuseError, raised_as
from unrefuse.models.assemble import empty_network
from unrefuse.models.device import check_finite, free_memory
from unrefuse.models.weights import lazy_weights
from unrefuse.models.writers import blocks
from unrefuse.progress import stderr, track

T = TypeVar("T")


class _Job(greenlet):
    """One of the jobs that go through the blocks side by side; `room` holds its stream, where
    that lies outside the device's memory."""

    room: Tensor | None = None


def in_this_job(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A forward hook that acts only on what runs in the job that makes it, and in jobs of that.

    Jobs share the modules of a streamed model. Made outside of any job it acts always, and in every
    thread.
    """
    owner = getcurrent()
    if not isinstance(owner, _Job):
        return hook

    def act(*args: Any) -> Any:
        runner: greenlet | None = getcurrent()
        while runner is not None and runner is not owner:
            runner = runner.parent
        return None if runner is None else hook(*args)

    return act


class Stream:
    """The blocks of a network whose matrices are on disk, and come into memory one by one.

    Vectors (norms, biases), embeddings and head stay in memory. Beside them there are at most two
    blocks: the one that runs, and the one that is read ahead. `waited` counts the seconds that
    jobs stood still for a read, `reads` the blocks that were read.
    """

    def __init__(self, network: PreTrainedModel, files: Sequence[Path], device: torch.device):
        self.network, self.device = network, device
        self.size = sum(file.stat().st_size for file in files)
        self.waited, self.reads = 0.0, 0
        self._blocks = blocks(network)
        self._loading = LoadStateDictConfig(
            # That something is on disk makes transformers read tensor by tensor: its four threads
            # at once leave freed memory in four heaps (peak 0.30 GB in place of 0.22).
            device_map={"": device, "nothing": "disk"},
            dtype=network.dtype,
            dtype_plan=network._get_dtype_plan(network.dtype),
            weight_mapping=get_model_conversion_mapping(network),  # type: ignore[arg-type]
        )
        self._empty = [_matrices(block) for block in self._blocks]
        self._largest = max(
            sum(tensor.nbytes for *_, tensor in matrices) for matrices in self._empty
        )
        self._stored: list[dict[str, Any]] = [{} for _ in self._blocks]
        self._read_residents(files)
        self._checked: set[int] = set()
        self._current: int | None = None
        self._ahead: tuple[int, Future[None]] | None = None
        self._reader = ThreadPoolExecutor(1)
        self._announced = False
        self._jobs = 1
        for layer, block in enumerate(self._blocks):
            block.register_forward_pre_hook(partial(self._enter, layer), with_kwargs=True)
            block.register_forward_hook(partial(self._leave, layer))

    def together(
        self, jobs: Sequence[Callable[[], T]], what: str | None, passes: int = 1
    ) -> list[T]:
        """The results of `jobs`, which go through each block side by side, without gradients.

        May be called inside of a job: all jobs are before the same block at any time. `what` and
        `passes`, how often a job is expected to go through the model, are for the bar.
        """
        results: dict[int, T] = {}

        def run(index: int) -> None:
            results[index] = jobs[index]()

        workers = [_Job(partial(run, index)) for index in range(len(jobs))]
        rounds = self._rounds(workers)
        if not isinstance(getcurrent(), _Job):
            rounds = track(rounds, what or "streamed", passes * len(self._blocks))
            self._jobs = len(jobs)
        # The mode is one of the thread: a job that left it would switch it off for the others.
        with torch.inference_mode():
            try:
                for _ in rounds:
                    pass
            finally:
                for worker in workers:
                    if not worker.dead:  # an error has left it waiting
                        worker.throw()
        return [results[index] for index in range(len(jobs))]

    def fit(self, size: int) -> int:
        """How many things of `size` bytes a job may hold at once, all jobs doing alike: in half
        of the memory that is free beside two blocks."""
        free = free_memory(self.device) - 2 * self._largest
        return max(1, free // (2 * self._jobs * size))

    def announce(self, tokens: int) -> None:
        """Tells once what replies of `tokens` tokens cost, before they are generated."""
        if not self._announced:
            stderr.print(
                f"streamed: each token of the replies, up to {tokens}, reads the whole checkpoint "
                f"({self.size / 1e9:.1f} GB) once, for all prompts together",
            )
        self._announced = True

    def _rounds(self, workers: list[_Job]) -> Iterator[None]:
        """Every round takes all workers through one block, the first one up to block 0."""
        scheduler = getcurrent()
        for worker in workers:
            worker.switch()
        while workers := [worker for worker in workers if not worker.dead]:
            if isinstance(scheduler, _Job) and scheduler.parent is not None:
                scheduler.parent.switch()
            for worker in workers:
                worker.switch()
            yield

    def _enter(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        runner = getcurrent()
        if isinstance(runner, _Job) and runner.parent is not None:
            runner.parent.switch()
        self._load(layer)
        if args:
            return (args[0].to(self.device), *args[1:]), options
        return args, options | {"hidden_states": options["hidden_states"].to(self.device)}

    def _leave(self, layer: int, module: nn.Module, args: object, output: Any) -> Any:
        runner = getcurrent()
        if not isinstance(runner, _Job) or layer == len(self._blocks) - 1:
            return None
        states = output[0] if isinstance(output, tuple) else output
        if runner.room is None or runner.room.shape != states.shape:
            runner.room = self._room(states)
        if runner.room is None:
            return None
        runner.room.copy_(states)
        return (runner.room, *output[1:]) if isinstance(output, tuple) else runner.room

    def _room(self, states: Tensor) -> Tensor | None:
        """Where a stream waits for the next block: None, on the device, as long as there is
        memory for two blocks and the work in one; else in main memory, or on disk."""
        wanted = 2 * self._largest + 16 * states.nbytes
        for device in dict.fromkeys((self.device, torch.device("cpu"))):
            if free_memory(device) > wanted:
                return None if device == self.device else torch.empty_like(states, device=device)
            wanted = 16 * states.nbytes
        with tempfile.NamedTemporaryFile(prefix="unrefuse-") as file:
            mapped = torch.from_file(file.name, True, states.numel(), dtype=states.dtype)
        return mapped.view(states.shape)

    def _load(self, layer: int) -> None:
        """Makes `layer` the one block in memory, and begins to read the next."""
        if layer == self._current:
            return
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] != layer:
            ahead[1].result()
            self._release(ahead[0])
            ahead = None
        if self._current is not None:
            self._release(self._current)
            self._current = None
        start = time.perf_counter()
        (ahead[1] if ahead else self._reader.submit(self._read, layer)).result()
        self.waited += time.perf_counter() - start
        self._current = layer
        following = (layer + 1) % len(self._blocks)
        if following != layer:
            self._ahead = following, self._reader.submit(self._read, following)

    def _read(self, layer: int) -> None:
        transformers_logging.disable_progress_bar()  # its bar would come up for every block
        convert_and_load_state_dict_in_model(self.network, dict(self._stored[layer]), self._loading)
        self.reads += 1
        if layer in self._checked:
            return
        for name, parameter in self._blocks[layer].named_parameters():
            if parameter.is_meta:
                raise UnrefuseError(
                    f"the checkpoint has no weights for {name} of block {layer}, of the shape "
                    f"{tuple(parameter.shape)}"
                )
            ends = torch.stack(torch.aminmax(parameter))
            check_finite(ends, f"the weights of {name} of block {layer}", self.network.dtype)
        self._checked.add(layer)

    def _release(self, layer: int) -> None:
        for module, name, empty in self._empty[layer]:
            setattr(module, name, empty)

    def _read_residents(self, files: Sequence[Path]) -> None:
        """Loads, as transformers would, all that stays; keeps for each block where its rest is."""
        network, mapping = self.network, self._loading.weight_mapping or []
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        known = network.state_dict()
        prefix = next(name for name, module in network.named_modules() if module is self._blocks)
        residents: dict[str, Any] = {}
        # pread, since a map would count as memory
        for name, weight in lazy_weights(files, backend="pread").items():
            target, _ = rename_source_key(
                name, renamings, converters, network.base_model_prefix, known
            )
            # A name that the network does not know is left to transformers, which skips it.
            inside = target.startswith(f"{prefix}.") and target in known
            inside = inside and known[target].dim() > 1
            layer = int(target[len(prefix) + 1 :].split(".")[0]) if inside else None
            tensors = residents if layer is None else self._stored[layer]
            tensors[name] = weight
        found, _ = convert_and_load_state_dict_in_model(network, residents, self._loading)
        later = {id(tensor) for matrices in self._empty for *_, tensor in matrices}
        found.missing_keys -= {
            name for name, tensor in network.named_parameters() if id(tensor) in later
        }
        network._finalize_model_loading(network, self._loading, found)


def _matrices(block: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """The parameters of a block that are no vectors: module, name, and the empty one."""
    return [
        (module, name, parameter)
        for module in block.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() > 1
    ]


def stream_network(
    files: Sequence[Path],
    auto: Any,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Stream]:
    """The network of the safetensors `files`, its blocks left on disk.

    `auto` is the transformers class that makes it of `config`. Raises UnrefuseError for a pickle.
    """
    if files[0].suffix != ".safetensors":
        raise UnrefuseError("a pickle checkpoint cannot be streamed: leave out --stream")
    with raised_as(f"cannot load the model in {files[0].parent}"):
        network = empty_network(auto, config, dtype, trust_remote_code)
        return network, Stream(network, files, device)

"""What a model needs to run, by its files' headers alone, and which ways of running it fit here."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from unrefuse.models.checkpoint import BESIDE
from unrefuse.models.device import free_memory

BLOCK = re.compile(r"(.+?)\.(\d+)\.")  # of a tensor's name: a list of blocks, and the number in it


@dataclass(frozen=True)
class Size:
    """How many numbers a model has: in all; in its largest block; and, of all blocks, those that
    `--stream` leaves on disk. `stored` is in bytes."""

    numbers: int
    largest_block: int
    streamed: int
    stored: int


@dataclass(frozen=True)
class RunMode:
    """One way to run a model, or to edit it: bytes that it needs, and that are free for it."""

    name: str
    option: str
    needed: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free


def size_of(shapes: Mapping[str, Sequence[int]], stored: int) -> Size:
    """The decoder's blocks are the list with most numbers; vectors stay in memory in any case."""
    blocks: dict[str, Counter[str]] = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and (found := BLOCK.match(name)):
            blocks.setdefault(found[1], Counter())[found[2]] += math.prod(shape)
    decoder = max(blocks.values(), key=Counter.total, default=Counter[str]())
    return Size(
        numbers=sum(math.prod(shape) for shape in shapes.values()),
        largest_block=max(decoder.values(), default=0),
        streamed=decoder.total(),
        stored=stored,
    )


def run_modes(size: Size, dtype: torch.dtype, device: torch.device, disk: int) -> list[RunMode]:
    """In memory, spread over all devices and the main memory, streamed from disk, and the edit on
    disk, which takes `disk` bytes free there. Weights only: what a batch takes beside them comes
    out of what is left."""
    whole, free = size.numbers * dtype.itemsize, free_memory(device)
    modes = [RunMode("in memory", "", whole, free)]
    if device.type != "cpu":
        cards = [torch.device(device.type, i) for i in range(torch.accelerator.device_count())]
        places = [*cards, torch.device("cpu")]
        total = sum(free_memory(place) for place in places)
        modes.append(RunMode("spread over the devices", "--device-map auto", whole, total))
    held = size.numbers - size.streamed + 2 * size.largest_block
    return [
        *modes,
        RunMode("block by block from disk", "--stream", held * dtype.itemsize, free),
        RunMode("the edit of a run, on disk", "unrefuse apply", size.stored + BESIDE, disk),
    ]

"""How much memory is free, by what the system, a control group and a resource limit allow."""

from contextlib import suppress
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; page cache that can be dropped counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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

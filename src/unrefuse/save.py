"""Saving: a temporary folder beside the goal, checked, then renamed. Never half a model."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from unrefuse.errors import UsageError, first_line

# How far the logits of a saved model may lie from those of the hooked one, as the root mean
# square of the difference in units of their spread: rounding in the coarser of the two dtypes.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Discard(Exception):
    """Raised inside of `new_folder`: what was written is not wanted. Ends the block quietly."""


def check_out(out: Path, option: str = "--out") -> None:
    """Raises UsageError unless `out` is new or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder: name another {option}")


@contextmanager
def new_folder(out: Path, size: int = 0) -> Iterator[Path]:
    """Yields a temporary folder beside `out`, which becomes `out` when the block ends well.

    On any exception, Ctrl-C too, it is taken away. Raises UsageError where `out` is in use, where
    less than `size` bytes are free, and for what the system says while writing.
    """
    check_out(out)
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise UsageError(
                f"no space for {out}: {size / 2**20:.0f} MiB are needed, {free / 2**20:.0f} free"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(out)
    except Discard:
        pass
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write {out}: {first_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(file: Path) -> None:
    """Raises UsageError where `file` exists."""
    if file.exists():
        raise UsageError(f"{file} exists: name another file")


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Yields a temporary path beside `file`, which becomes `file` when the block ends well.

    Raises UsageError where `file` exists, and for what the system says while writing.
    """
    check_new(file)
    temporary = file.absolute().with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_logits(wanted: Tensor, got: Tensor, dtype: torch.dtype) -> float:
    """The distance of two sets of logits `(prompts, vocab)`, in units of their spread.

    Raises RuntimeError where it is more than rounding in `dtype`: the saved weights are not the
    edit that was measured.
    """
    distance = float((got - wanted).square().mean().sqrt() / wanted.std())
    if not distance <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"the saved model's logits are {distance:.2g} spreads from those of the measured edit "
            f"(allowed: {TOLERANCE[dtype]:.2g}): nothing was saved"
        )
    return distance


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

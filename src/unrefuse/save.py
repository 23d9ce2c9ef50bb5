"""Saving: a temporary folder beside the goal, checked, then renamed. Never half a model."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unrefuse.config import RunConfig
from unrefuse.edit.copying import head_start
from unrefuse.edit.recipe import PLAN, find_plan, read_recipe
from unrefuse.errors import UsageError, first_line
from unrefuse.models.checkpoint import check_checkpoint, checkpoint_files, find_folder


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


def apply_plan(run: Path, config: RunConfig, link: bool = False) -> dict[str, Any]:
    """Writes to `config.out` the checkpoint of `config.model` with the edit that `run` made.

    `run` is a saved model, a tuning run or a plan file; the model is not loaded. The edit keeps
    the rows' length where `config.preserve_norm` says so, or `run` did. Returns what `--json`
    prints; `measured` is whether the figures of `run` are those of this form. Raises UsageError.
    """
    if config.out is None:
        raise UsageError("where to? name a folder: --out DIR")
    check_out(config.out)
    find_plan(run)  # before a download
    folder = find_folder(config)
    check_checkpoint(folder, config)
    files = checkpoint_files(folder)
    size = sum(file.stat().st_size for file in files)
    early = [] if link else [file for file in files if file.suffix != ".bin"]
    with new_folder(config.out, size + 2**24) as new, head_start(folder, early, new) as begun:
        from unrefuse.edit.plan import save_plan
        from unrefuse.edit.shards import write_checkpoint
        from unrefuse.edit.verify import check_written
        from unrefuse.models.device import choose_device

        device = choose_device(config.device)
        plan, made_for = read_recipe(run, folder)
        was_preserved = made_for.get("preserve_norm") == "True"
        preserve_norm = config.preserve_norm or was_preserved
        if preserve_norm and not all(edit.of_output for edit in plan):
            raise UsageError("--preserve-norm is for an ablation, and this edit is none")
        write_checkpoint(folder, plan, new, preserve_norm, link, device, begun.stop())
        lost = check_written(folder, new, plan, preserve_norm, whole=False)
        made_for["preserve_norm"] = str(preserve_norm)
        (new / PLAN).parent.mkdir()
        save_plan(plan, new / PLAN, made_for)
    return {
        "out": str(config.out),
        "matrices": len(plan),
        "lost_in_rounding": lost,
        "preserve_norm": preserve_norm,
        "measured": preserve_norm == was_preserved,
    }


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Saving: a temporary folder where the goal will lie, checked, then renamed. Never half a model.

Whether a goal can be written is checked here, before any work, and nowhere else.
"""

import errno
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unrefuse.config import RunConfig
from unrefuse.edits.disk.copying import head_start
from unrefuse.edits.recipe import PLAN, find_plan
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.models.checkpoint import (
    BESIDE,
    check_checkpoint,
    checkpoint_files,
    find_folder,
    other_files,
)

PREFIX = ".unrefuse-"  # of temporary names, short whatever the goal's name


class Discard(Exception):
    """Raised inside of `new_folder`: what was written is not wanted. Ends the block quietly."""


def check_out(out: Path, option: str = "--out", size: int = 0) -> Path:
    """Where the folder `out` will lie: absolute, with `~` and links followed.

    Raises UnrefuseError unless it is new or an empty folder, and as `check_writable` does. Leaves
    nothing behind.
    """
    goal = check_writable(out, size)
    with _system_errors(out):
        if goal.exists() and (not goal.is_dir() or _inside(goal)):
            raise UnrefuseError(f"{out} exists and is not an empty folder: name another {option}")
    return goal


def check_writable(out: Path, size: int = 0) -> Path:
    """Where `out` will lie. Raises UnrefuseError where no folder can be made and renamed there, or
    less than `size` bytes are free. Leaves nothing behind."""
    with _system_errors(out):
        goal = _goal(out)
        place = _place(goal if goal.is_dir() else goal.parent)
        free = shutil.disk_usage(place).free
        if free < size:
            raise UnrefuseError(
                f"no space for {out}: {size / 2**20:.0f} MiB are needed, {free / 2**20:.0f} free"
            )
        made, renamed = _temporary(place), _temporary(place)
        try:
            made.mkdir()
            (made / "x").touch()
            made.rename(renamed)
        finally:
            for folder in (made, renamed):
                shutil.rmtree(folder, ignore_errors=True)
    return goal


def free_space(path: Path) -> int:
    """Bytes free on the disk where `path` will lie. Raises UnrefuseError where that can't be
    told."""
    with _system_errors(path):
        return shutil.disk_usage(_place(_goal(path))).free


def check_new(file: Path, replace: bool = False) -> Path:
    """Where the file `file` will lie. Raises UnrefuseError where it is there already, unless it may
    be replaced, and as `check_writable` does."""
    goal = check_writable(file)
    if goal.is_dir() or (goal.exists() and not replace):
        raise UnrefuseError(f"{file} exists: name another file")
    return goal


def copy_size(folder: Path, out: Path) -> int:
    """Bytes that an edited copy of a checkpoint takes, about. Raises UnrefuseError for an `out`
    that lies in the checkpoint's own folder, of which it would become a part."""
    with _system_errors(out):
        if _goal(out).is_relative_to(folder.resolve()):
            raise UnrefuseError(f"{out} is inside the folder of the model: name another --out")
    there = [f for f in (*checkpoint_files(folder), *other_files(folder)) if f.is_file()]
    return sum(file.stat().st_size for file in there) + BESIDE


@contextmanager
def new_folder(out: Path, size: int = 0) -> Iterator[Path]:
    """Yields a temporary folder, which becomes `out` when the block ends well.

    On any exception, Ctrl-C too, it is taken away. A folder that is there, and empty, is filled in
    place: it may be a mount point, a link's goal, the current folder, or have rights of its own.
    Raises UnrefuseError as `check_out` does, and for what the system says while writing.
    """
    goal = check_out(out, size=size)
    with _system_errors(out):
        temporary = _temporary(_place(goal))
        temporary.mkdir()
    with _kept(out, temporary, lambda: _publish(temporary, goal)):
        yield temporary


@contextmanager
def new_file(file: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary path of the same type, which becomes `file` when the block ends well.

    Raises UnrefuseError as `check_new` does, and for what the system says while writing.
    """
    goal = check_new(file, replace)
    temporary = _temporary(_place(goal.parent), goal.suffix)

    def publish() -> None:
        if not replace and goal.exists():
            raise FileExistsError(errno.EEXIST, "it is there by now")
        goal.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(goal)

    with _kept(file, temporary, publish):
        yield temporary


@contextmanager
def _kept(out: Path, temporary: Path, publish: Callable[[], None]) -> Iterator[None]:
    """Takes `temporary` away unless the block ends well; then publishes it. What is finished but
    can't be published stays, and the error says where."""
    done = False
    try:
        yield
        done = True
    except Discard:
        pass
    except (OSError, SafetensorError) as error:
        raise UnrefuseError(f"cannot write {out}: {_reason(error)}") from None
    finally:
        if not done:
            shutil.rmtree(temporary, ignore_errors=True)
            if temporary.is_file():
                temporary.unlink()
    if done:
        try:
            publish()
        except OSError as error:
            raise UnrefuseError(
                f"cannot write {out}: {_reason(error)}; the finished work is in {temporary}"
            ) from None


def _publish(temporary: Path, goal: Path) -> None:
    if not goal.is_dir():
        goal.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(goal)
        return
    if _inside(goal) - {temporary.name}:
        raise FileExistsError(errno.EEXIST, "it is not empty by now")
    # JSON comes last: without its config.json nothing takes a folder for a whole model.
    for file in sorted(temporary.iterdir(), key=lambda file: file.suffix == ".json"):
        file.rename(goal / file.name)
    temporary.rmdir()


def _goal(path: Path) -> Path:
    """The absolute path, with `~` and links followed. Raises UnrefuseError for a link to nothing: a
    disk that is not mounted, mostly."""
    path = path.expanduser()
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise UnrefuseError(
                f"cannot write {path}: {link} is a link to {link.readlink()}, which does not exist"
            )
    return path.resolve()


def _place(goal: Path) -> Path:
    """The nearest folder that is there, on the file system of the goal: itself or one above it.
    Raises UnrefuseError where that is a file."""
    place = next(path for path in (goal, *goal.parents) if path.exists())
    if not place.is_dir():
        raise UnrefuseError(f"cannot write {goal}: {place} is a file")
    return place


def _temporary(place: Path, suffix: str = "") -> Path:
    return place / f"{PREFIX}{secrets.token_hex(4)}{suffix}"


def _inside(folder: Path) -> set[str]:
    """What is in a folder, less what an empty disk has."""
    return {file.name for file in folder.iterdir()} - {"lost+found"}


@contextmanager
def _system_errors(out: Path) -> Iterator[None]:
    """What the system says of a path, in one line. RuntimeError: `~` of nobody, links in a ring."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise UnrefuseError(f"cannot write {out}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def apply_plan(run: Path, config: RunConfig, link: bool = False) -> dict[str, Any]:
    """Writes to `config.out` the checkpoint of `config.model` with the edit that `run` made.

    `run` is a saved model, a tuning run, a plan file, or an adapter of `export --lora`, whose scale
    is kept; the model is not loaded. The edit keeps the rows' length where it was measured so.
    Returns what `--json` prints. Raises UnrefuseError, for an edit that was not measured above its
    floors on these weights and in this form too: see `measured.read_measured`.
    """
    out = config.require_out()
    check_out(out)
    find_plan(run)  # before a download
    if config.dequantize:
        from unrefuse.models.load import find_checkpoint

        folder = find_checkpoint(config)
    else:
        folder = find_folder(config)
    check_checkpoint(folder, config)
    files = checkpoint_files(folder)
    early = [] if link else [file for file in files if file.suffix != ".bin"]
    with new_folder(out, copy_size(folder, out)) as new, head_start(folder, early, new) as begun:
        from unrefuse.edits.disk.shards import write_checkpoint
        from unrefuse.edits.disk.verify import check_written
        from unrefuse.edits.plan import save_plan, scaled
        from unrefuse.metrics.floors import read_measured
        from unrefuse.models.device import choose_device

        device = choose_device(config.device)
        recipe = read_measured(run, folder, True if config.preserve_norm else None)
        preserve_norm = recipe.measured.preserve_norm
        plan = scaled(recipe.plan, recipe.scale)
        write_checkpoint(folder, plan, new, preserve_norm, link, device, begun.stop())
        lost = check_written(folder, new, plan, preserve_norm, whole=False)
        (new / PLAN).parent.mkdir()
        save_plan(recipe.plan, new / PLAN, recipe.metadata)
    return {
        "out": str(config.out),
        "matrices": len(plan),
        "lost_in_rounding": lost,
        "preserve_norm": preserve_norm,
        "scale": recipe.scale,
    }

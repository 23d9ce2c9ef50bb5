"""The bytes of a checkpoint's files: copied by the kernel where it can, and begun early."""

import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from unrefuse.models.checkpoint import left_out, other_files
from unrefuse.progress import stderr

WORKERS = 2  # more gain little beside a disk
CHUNK = 1 << 26  # bytes that one job copies: what Ctrl-C waits for
FICLONE = 0x40049409  # ioctl of Linux: two files share their blocks until one is written
# What the kernel says where two file systems, or this one, can't do it: then bytes are copied here.
CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM)


class HeadStart:
    """Copies files of the folder `source` in order, each from its beginning on, until stopped.

    For the second that importing torch takes, in which a disk would stand idle.
    """

    def __init__(self, source: Path, files: Iterable[Path], out: Path) -> None:
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS)
        self._jobs = {
            file: self._pool.submit(self._copy, file, out / file.relative_to(source))
            for file in files
        }

    def stop(self) -> dict[Path, int]:
        """How many bytes there are now of each file that was begun. Raises OSError."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        return {file: job.result() for file, job in self._jobs.items() if not job.cancelled()}

    def _copy(self, file: Path, target: Path) -> int:
        size = file.stat().st_size
        for at in range(make_target(file, target), size, CHUNK):
            if self._stopped.is_set():
                return at
            copy_bytes(file, target, at, min(CHUNK, size - at))
        return size


@contextmanager
def head_start(source: Path, files: Iterable[Path], out: Path) -> Iterator[HeadStart]:
    """A HeadStart that has stopped when the block ends, however it ends."""
    begun = HeadStart(source, files, out)
    try:
        yield begun
    finally:
        begun.stop()


def make_target(file: Path, target: Path) -> int:
    """Makes `target` as large as `file`; how many of its bytes are there: all, or none."""
    size = file.stat().st_size
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as new, file.open("rb") as old:
        if _clone(old.fileno(), new.fileno()):
            return size
        new.truncate(size)
    return 0


def copy_files(source: Path, files: Iterable[Path], out: Path, link: bool = False) -> None:
    """Copies whole files of the folder `source` to the same places in `out`, or hard-links them."""
    for file in files:
        target = out / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.link(file.resolve(), target)
        else:
            shutil.copyfile(file, target)


def copy_others(source: Path, out: Path, link: bool = False) -> None:
    """Copies what is no weights in the model folder `source`, and names what is left out."""
    copy_files(source, other_files(source), out, link)
    if left := left_out(source):
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        stderr.print(
            f"not copied (other weights, links to folders): {', '.join(left[:3])}{more}",
        )


def copy_bytes(file: Path, target: Path, at: int, size: int) -> None:
    """Copies `size` bytes at the offset `at`, within the kernel where it can."""
    with file.open("rb", buffering=0) as old, target.open("r+b", buffering=0) as new:
        end = at + size
        try:
            while at < end and hasattr(os, "copy_file_range"):
                done = os.copy_file_range(old.fileno(), new.fileno(), end - at, at, at)
                if not done:
                    raise OSError(errno.EIO, f"{file} ended early")
                at += done
        except OSError as error:
            if error.errno not in CANNOT:
                raise
        old.seek(at)
        new.seek(at)
        while at < end:
            part = old.read(min(end - at, 1 << 20))
            if not part:
                raise OSError(errno.EIO, f"{file} ended early")
            at += new.write(part)


def _clone(old: int, new: int) -> bool:
    """Whether the file system made `new` share the blocks of `old`."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.ioctl(new, FICLONE, old)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return False
    return True

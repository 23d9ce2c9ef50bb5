"""Models that are made here once, and kept in the user's cache."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from unrefuse.errors import UnrefuseError, first_line

DO = "set XDG_CACHE_HOME to a folder that has space and can be written"


def cached(name: str, size: int, make: Callable[[Path], object], cache: Path | None = None) -> Path:
    """The folder `name` in the user's cache: `make` fills it at the first call, with about `size`
    bytes. It is either not there or whole.

    Raises UnrefuseError where the cache cannot be written or has no room.
    """
    cache = cache or user_cache_path("unrefuse")
    folder = cache / name
    if folder.is_dir():
        return folder
    temporary = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if free < size:
            raise UnrefuseError(
                f"no space in {cache}: {size / 2**20:.0f} MiB are needed, {free / 2**20:.0f} free; "
                f"{DO}"
            )
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
        make(temporary)
        temporary.replace(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            raise UnrefuseError(f"cannot write {folder}: {first_line(error)}; {DO}") from None
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder

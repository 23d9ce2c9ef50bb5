"""A run found again by its name: what it saved, or what it left where it saved nothing."""

from dataclasses import dataclass
from pathlib import Path

from unrefuse.errors import UnrefuseError
from unrefuse.metrics.record import SETTINGS
from unrefuse.report.lines import RECORD

BESIDE = ".run"  # after OUT: what an edit keeps there until it has saved something


@dataclass(frozen=True)
class Found:
    """Where a run lies: the folder that it was to write, the file that `--config` takes, and the
    folders that may hold its trials. `ended` is False where it has no record yet: `file` then is
    its settings."""

    out: Path
    file: Path
    trials: tuple[Path, ...]
    ended: bool = True

    @property
    def only_tunes(self) -> bool:
        """Whether it is a run of `unrefuse tune`, which saves no model."""
        return self.out == self.file.parent and (self.out / SETTINGS).is_file()


def find_run(path: Path) -> Found:
    """The run at `path`: a folder of `edit` or `tune`, the OUT of one that saved nothing or was
    stopped, or a file that holds the object of `--json`. Raises UnrefuseError where there is
    none."""
    try:
        if path.is_file():
            if path.name != RECORD:
                if path.suffix.lower() != ".json":
                    raise UnrefuseError(
                        f"{path} is not a run: name the folder of a run, or a .json file with its "
                        "record"
                    )
                return Found(path.with_suffix(""), path, ())
            path = path.parent
        path = path if path.name not in ("", "..") else path.resolve()
        out = path
        out = out.with_name(out.name.removesuffix(BESIDE) or out.name)
        for folder in (path, out.with_name(f"{out.name}{BESIDE}")):
            for name, ended in ((RECORD, True), (SETTINGS, False)):
                if (folder / name).is_file():
                    return Found(out, folder / name, (folder, folder / "tuning"), ended)
    except (OSError, ValueError) as error:
        raise UnrefuseError(f"cannot read {path}: {error}") from None
    raise UnrefuseError(
        f"there is no run in {path}: name the --out folder of `unrefuse edit` or `unrefuse tune`, "
        "or a .json file with what --json printed"
    )

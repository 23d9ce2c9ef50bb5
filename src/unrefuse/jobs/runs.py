"""The record of a run, kept though nothing was saved, and found again by the name of the run."""

from dataclasses import dataclass
from pathlib import Path

from unrefuse.errors import UnrefuseError
from unrefuse.jobs.save import new_file
from unrefuse.metrics.record import SETTINGS
from unrefuse.progress import stderr
from unrefuse.report.results import RECORD, Result, write_json

TUNING = ".tuning"  # after OUT: the folder of its tuning, until OUT is saved


@dataclass(frozen=True)
class Found:
    """Where a run lies: its folder, the file that `--config` takes, and the folder of its trials.

    `ended` is False for a tuning that has no record yet: `file` then is its settings.
    """

    folder: Path
    file: Path
    trials: Path
    ended: bool = True

    @property
    def only_tunes(self) -> bool:
        """Whether it is a run of `unrefuse tune`, which saves no model."""
        own = self.trials == self.folder and (self.trials / SETTINGS).is_file()
        return own and not self.folder.name.endswith(TUNING)


def keep_unsaved(result: Result, out: Path, run: Path | None) -> None:
    """Writes the record of a run that saved nothing: into the folder of its tuning `run`, else as
    OUT.run.json. Only tells where that can't be written: the run itself is done."""
    file = run / RECORD if run else _beside(out)
    try:
        with new_file(file, replace=True) as new:
            write_json(result, new)
    except UnrefuseError as error:
        stderr.print(f"the record of the run is lost: {error}")


def find_run(path: Path) -> Found:
    """The run at `path`: a folder of `edit` or `tune`, the OUT of an edit that saved nothing, or a
    file that holds the object of `--json`. Raises UnrefuseError where there is none."""
    tuning = path.with_name(f"{path.name}{TUNING}") if path.name else path
    try:
        if path.is_file() and path.name != RECORD:
            name = path.name.removesuffix(path.suffix).removesuffix(".run")
            folder = path.with_name(name or path.name)
            return Found(folder, path, folder)
        if path.is_file():
            path = path.parent
        for folder in (path, tuning):
            inside = folder / "tuning"
            trials = inside if inside.is_dir() else folder
            if (folder / RECORD).is_file():
                return Found(folder, folder / RECORD, trials)
            if (folder / SETTINGS).is_file():
                return Found(folder, folder / SETTINGS, trials, ended=False)
        if path.name and _beside(path).is_file():
            return Found(path, _beside(path), path)
    except (OSError, ValueError) as error:
        raise UnrefuseError(f"cannot read {path}: {error}") from None
    raise UnrefuseError(
        f"there is no run in {path}: name a folder that `unrefuse edit` or `unrefuse tune` was to "
        "write, or a file with what --json printed"
    )


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.{RECORD}")

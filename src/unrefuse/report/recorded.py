"""A run.json read again. It may come from anywhere: every value is checked, and none is run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unrefuse.config import RunConfig
from unrefuse.detector.refusal import Grade
from unrefuse.errors import UnrefuseError
from unrefuse.textfile import read_text

Set = Literal["target", "baseline", "keep"]
Count = Annotated[int, Field(ge=0)]
Part = Annotated[tuple[Count, Count], Len(2, 2)]  # so many of so many


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class FigureRecord(_Strict):
    """A figure, the prompts behind it, and the ends of its interval."""

    value: float
    n: int = Field(ge=1)
    low: float
    high: float


class FigureRecords(_Strict):
    """The four figures of a measurement."""

    removal: FigureRecord
    retention: FigureRecord
    quality: FigureRecord
    kl: FigureRecord

    def named(self) -> dict[str, FigureRecord]:
        """The four by name."""
        return {name: getattr(self, name) for name in FigureRecords.model_fields}


class StageRecord(FigureRecords):
    """One stage on the search split: see `searched.stage_record`. Earlier versions wrote no
    grades."""

    name: str
    multiplier: float
    keeps_floors: bool
    grades: dict[Set, dict[Grade, Count]] = {}
    topics: dict[Set, dict[str, Part]] = {}
    unended: Count = 0


class Original(_Strict):
    """What the original did on one split and set: see `searched.original_record`."""

    grades: dict[Grade, Count]
    topics: dict[str, Part]


class KernelRecord(_Strict):
    """The weight kernel of the edit."""

    kind: Literal["gaussian", "file"]
    peak: float | None
    width: float | None
    threshold: float | None
    multiplier: float
    weights: list[float]


class RunRecord(FigureRecords):
    """What a run.json says. Its figures are those of the test split where `split` says so, and
    those choose nothing; `stages` are those of the search split, which does."""

    saved: bool
    split: Literal["search", "test"]
    judge: str = "builtin"
    by_detector: FigureRecords | None = None
    stages: Annotated[list[StageRecord], Len(1)]
    kernel: KernelRecord
    refused_before: dict[str, dict[Set, Part]]
    original: dict[str, dict[Set, Original]] = {}
    lost_in_rounding: list[str] = []
    versions: dict[str, str]

    @model_validator(mode="after")
    def _no_more_than_all(self) -> "RunRecord":
        stages = [part for stage in self.stages for topics in stage.topics.values()
                  for part in topics.values()]  # fmt: skip
        asked = [part for counts in self.refused_before.values() for part in counts.values()]
        if any(k > n for k, n in (*stages, *asked)):
            raise ValueError("more prompts counted than asked")
        return self

    @property
    def chosen(self) -> StageRecord:
        """The stage that the run took, or where it took none, the last one."""
        same = [s for s in self.stages if s.multiplier == self.kernel.multiplier]
        return (same or self.stages)[-1]

    def detected(self) -> dict[str, FigureRecord]:
        """The figures by the built-in detector's grades, which every run has."""
        return (self.by_detector or self).named()


def read_record(file: Path) -> RunRecord:
    """Raises UnrefuseError, in one line, for a file that is no record of `edit` or `tune`."""
    try:
        return RunRecord.model_validate_json(read_text(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise UnrefuseError(
            f"{file} is not a record of `unrefuse edit` or `unrefuse tune`: "
            f"{f'{where}: ' if where else ''}{said}"
        ) from None


def trusting(config: RunConfig) -> list[str]:
    """The settings by which a run would run a model's own code or send replies to a server: a
    record of unknown origin may not switch them on by itself."""
    found = [name for name in ("trust_remote_code", "allow_pickle") if getattr(config, name)]
    return found + (["judge"] if config.judge != "builtin" else [])


def local_paths(values: Any, where: str = "") -> list[str]:
    """The settings in a record's `config` that say where something lay on the machine."""
    if isinstance(values, dict):
        return [p for k, v in values.items() for p in local_paths(v, f"{where}.{k}".strip("."))]
    if isinstance(values, list):
        return [path for value in values for path in local_paths(value, where)]
    far = isinstance(values, str) and (values.startswith("~") or Path(values).is_absolute())
    return [f"{where} = {values}"] if far else []


class TrialScore(_Strict):
    """The figures of `search.score.Score`."""

    removal: float
    retention: float
    refused: float
    kl: float
    pairs: float = 0.0


class TrialRecord(_Strict):
    """One line of trials.jsonl."""

    trial: int
    parameters: dict[str, float]
    score: TrialScore

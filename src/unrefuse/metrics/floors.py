"""What an edit has to show before it is written, and the record of it that travels with its plan.

There is no way around it: whoever writes an edit, in whatever form, asks `read_measured`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unrefuse.config import LEAST_FLOOR, REPLY_TOKENS
from unrefuse.edits.recipe import check_made_for, find_plan, read_plan
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.statistics import MOST, share_of

if TYPE_CHECKING:
    from unrefuse.edits.plan import Plan

KEY = "measured"  # of a plan's metadata


class Kept(BaseModel):
    """Of `n` keep prompts that the original refused, how many are still refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kept: int = Field(ge=0, le=MOST)
    n: int = Field(ge=0, le=MOST)


def retains(every: Kept, shipped: Kept, floor: float, bound: float) -> bool:
    """Whether retention is at `floor` or above as measured, and shown to be at `bound` or above: a
    test of non-inferiority, by the lower end of the exact interval.

    The `shipped` ones of `every` have to keep both by themselves, so that prompts of a user's own
    never outnumber what is lost. Where they are too few to show `bound`, none may be lost.
    """

    def keeps(found: Kept, bound: float) -> bool:
        k, n = found.kept, found.n
        return k <= n > 0 and k / n >= floor and share_of(k, n).low >= bound

    n = shipped.n
    return keeps(every, bound) and (n == 0 or keeps(shipped, min(bound, share_of(n, n).low)))


def is_itself(quality: float, low: float, floor: float, bound: float) -> bool:
    """Whether quality is at `floor` or above, and its interval begins, at `low`, at `bound` or
    above."""
    return quality >= floor and low >= bound


class HeldFigures(BaseModel):
    """What an edit was held to, and what it showed: `quality_low` is the lower end of quality's
    interval."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    retention: Kept
    shipped: Kept
    quality: float
    quality_low: float
    retention_floor: float = Field(ge=LEAST_FLOOR, le=1)
    retention_bound: float = Field(ge=LEAST_FLOOR, lt=1)
    quality_floor: float = Field(ge=0, le=1)
    quality_bound: float

    def keeps_floors(self) -> bool:
        floors = self.retention_floor, self.retention_bound
        kept = retains(self.retention, self.shipped, *floors)
        return kept and is_itself(
            self.quality, self.quality_low, self.quality_floor, self.quality_bound
        )

    def __str__(self) -> str:
        kept, shipped = self.retention, self.shipped
        return (
            f"still refused: {kept.kept} of {kept.n} keep prompts, and {shipped.kept} of "
            f"{shipped.n} shipped ones; quality {self.quality:.2f}, its interval from "
            f"{self.quality_low:.2f}"
        )


class Measured(HeldFigures):
    """The record of a plan: its measurement on the test split, and the floors that it was held to.

    `plan_sha256` is that of the plan itself, `preserve_norm` whether rows kept their length.
    """

    plan_sha256: str
    preserve_norm: bool
    split: Literal["test"]
    reply_tokens: int = Field(ge=REPLY_TOKENS)


@dataclass(frozen=True)
class Recipe:
    """A plan that was measured above its floors, and its metadata. `scale` is the share of its
    strength that is to be written, 0 to 1: below 1 where it lies beside an adapter of
    `export --scale`."""

    plan: "Plan"
    metadata: dict[str, str]
    measured: Measured
    scale: float


def read_measured(run: Path, model: Path, preserve_norm: bool | None = False) -> Recipe:
    """The plan at `run` for the checkpoint in the folder `model`, to be written with rows that keep
    their length or without (None: as it was measured).

    Raises UnrefuseError for a plan that cannot be read, or was made for other weights; and where
    its record does not say that just this plan, in just this form, was measured above the floors.
    """
    recipe = read_recorded(run)
    file, measured = find_plan(run), recipe.measured
    check_made_for(recipe.metadata, model, file)
    if preserve_norm not in (None, measured.preserve_norm):
        raise UnrefuseError(
            f"the edit of {file} was measured with --preserve-norm, which no adapter can hold: "
            "write it with `unrefuse apply`"
            if measured.preserve_norm
            else f"the edit of {file} was not measured with --preserve-norm: use `unrefuse edit "
            "--method ablate --preserve-norm`"
        )
    return recipe


def read_recorded(run: Path) -> Recipe:
    """The plan at `run`, whose record says that it was measured above its floors; for which weights
    is not asked. Raises UnrefuseError for one that cannot be read or was not."""
    file = find_plan(run)
    plan, metadata = read_plan(file)
    measured = _record(plan, metadata, file)
    try:
        scale = float(metadata.get("scale", 1))
    except ValueError:
        scale = -1.0
    check_scale(scale, f"the scale of the plan {file}")
    return Recipe(plan, metadata, measured, scale)


def check_scale(scale: float, what: str) -> None:
    """Raises UnrefuseError for a strength beyond the one that was measured, and below none."""
    if not 0 <= scale <= 1:
        raise UnrefuseError(f"{what} must be between 0 and 1, the measured strength, not {scale:g}")


def _record(plan: "Plan", metadata: Mapping[str, str], file: Path) -> Measured:
    from unrefuse.edits.plan import plan_hash

    do = "`unrefuse edit` measures an edit, then writes it"
    if KEY not in metadata:
        raise UnrefuseError(f"the plan {file} has no record of a measurement: {do}")
    try:
        measured = Measured.model_validate_json(metadata[KEY])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "not JSON"
        raise UnrefuseError(
            f"the record of the measurement in the plan {file} is damaged ({where}): {do}"
        ) from None
    if measured.plan_sha256 != plan_hash(plan):
        raise UnrefuseError(f"the plan {file} is not the one that was measured: {do}")
    if not measured.keeps_floors():
        raise UnrefuseError(
            f"the plan {file} was measured below a floor ({measured}), so unrefuse does not write "
            "its edit"
        )
    return measured

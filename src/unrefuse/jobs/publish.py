"""Every step of `unrefuse publish`: what is fit to be uploaded, and the one commit that does it."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from unrefuse.config import load_config
from unrefuse.edits.adapters.lora import ADAPTER
from unrefuse.edits.recipe import PLAN
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.metrics.floors import Kept, Recipe, read_recorded
from unrefuse.metrics.record import TRIALS
from unrefuse.models.checkpoint import CARD, SUMS
from unrefuse.models.files import walk
from unrefuse.report.adapter_card import adapter_card, adapter_figures
from unrefuse.report.lines import RECORD
from unrefuse.report.recorded import local_paths, read_record
from unrefuse.report.seal import find_faults, recorded_sums, sums_of

ADAPTER_CONFIG = "adapter_config.json"
REPLIES = (".jsonl", ".html")  # endings of files that hold what models said
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token"


@dataclass(frozen=True)
class Part:
    """One file of the repository: its name there, and the file here or the bytes."""

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True)
class Publication:
    """What goes into `repo`: files, the figures of the card, what is left out, and what a user
    should know before it is seen by others."""

    repo: str
    parts: list[Part]
    figures: dict[str, dict[str, float]]
    left_out: list[str]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "repo": self.repo,
            "files": [{"name": p.name, "size": p.size} for p in self.parts],
            "size": sum(p.size for p in self.parts),
            "figures": self.figures,
            "left_out": self.left_out,
            "notes": self.notes,
        }


def plan_publication(folder: Path, repo: str, replies: bool = False) -> Publication:
    """What of `folder`, a saved model or an adapter of `export --lora`, would go to `repo`; nothing
    is sent. With `replies`, also files that hold what models said to harmful prompts.

    Raises UnrefuseError for a name that is none, a folder that leads out of itself, and for an edit
    that is not as it was written, or was not measured above its floors.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UnrefuseError(
            f"{repo!r} is not a valid name of a repository: {first_line(error)}"
        ) from None
    if not folder.is_dir():
        raise UnrefuseError(f"{folder} is not a folder: name a saved model, or an adapter")
    inside = folder.resolve()
    for file in walk(folder):
        if not file.resolve().is_relative_to(inside):
            raise UnrefuseError(
                f"{file} is a link that leads out of the folder, and unrefuse does not upload what "
                "it points to: put a copy in its place"
            )
    if (folder / ADAPTER).is_file() and not (folder / RECORD).is_file():
        return _adapter(folder, repo)
    return _model(folder, repo, replies)


def _model(folder: Path, repo: str, replies: bool) -> Publication:
    faults = find_faults(folder)
    if faults:
        more = f" (and {len(faults) - 1} more: unrefuse verify {folder})" if faults[1:] else ""
        raise UnrefuseError(f"{folder} is not fit to be published: {faults[0]}{more}")
    record, config = read_record(folder / RECORD), load_config(folder / RECORD)
    measured = read_recorded(folder).measured
    retention = record.retention
    if Kept(kept=round(retention.value * retention.n), n=retention.n) != measured.retention:
        raise UnrefuseError(f"{folder} is not fit to be published: {PLAN} and {RECORD} differ")
    names = sorted(recorded_sums(folder))
    said = {n for n in names if n.endswith(REPLIES) and PurePosixPath(n).name != TRIALS}
    hidden = {n for n in names if any(part.startswith(".") for part in n.split("/"))}
    left_out = hidden if replies else hidden | said
    parts = [Part(name, folder / name) for name in names if name not in left_out]
    parts.append(Part(SUMS, sums_of(folder, {p.name for p in parts})))
    paths = local_paths(config.model_dump(mode="json"))
    notes = [f"{RECORD} tells where it lay: {path}" for path in paths]
    notes += [f"{name} holds replies to harmful prompts" for name in sorted(said - left_out)]
    figures = {name: figure.model_dump() for name, figure in record.named().items()}
    return Publication(repo, parts, figures, sorted(left_out), notes)


def _adapter(folder: Path, repo: str) -> Publication:
    from unrefuse.edits.adapters.check import check_adapter, check_gguf

    recipe = read_recorded(folder)
    if recipe.scale != 1:
        raise UnrefuseError(
            f"{folder} was exported at scale {recipe.scale:g}, which was not measured: export it "
            "without --scale to publish it"
        )
    check_adapter(folder, recipe.plan)
    gguf = sorted(file.name for file in folder.glob("*.gguf"))
    for name in gguf:
        check_gguf(folder / name, recipe.plan)
    names = [ADAPTER_CONFIG, ADAPTER, PLAN.name, *gguf]
    card = adapter_card(recipe, repo, gguf)
    parts = [Part(name, folder / name) for name in names] + [Part(CARD, card.encode())]
    there = {file.relative_to(folder).as_posix() for file in walk(folder)}
    return Publication(
        repo, parts, adapter_figures(recipe), sorted(there - set(names)), _notes(folder, recipe)
    )


def _notes(folder: Path, recipe: Recipe) -> list[str]:
    base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    notes = [f"{ADAPTER_CONFIG} tells where the base lay: {path}" for path in local_paths(base)]
    if notes or recipe.metadata.get("base") == "demo":
        notes.append("the base has no name on the hub: who takes the adapter has to name it")
    return notes


def upload(found: Publication, public: bool = False) -> dict[str, Any]:
    """Makes the repository, private unless it is to be `public`, and puts all files into it in one
    commit: all of them, or none. Returns its address, and whether it is private.

    Raises UnrefuseError without a token, where the hub does not take it or can't be reached, for a
    repository that is public without being asked to be, and for one that holds other files.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    # Its warnings of another try hold addresses with their signatures.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with _hub_errors(found.repo, "nothing was uploaded"):
        if not get_token():
            raise UnrefuseError(f"there is no token for the hub: {LOGIN}")
        api = HfApi(library_name="unrefuse", library_version=version("unrefuse"))
        made = api.create_repo(found.repo, private=not public, exist_ok=True)
        there = api.model_info(made.repo_id)
    if not there.private and not public:
        raise UnrefuseError(
            f"{made.repo_id} exists and is public: nothing was uploaded; choose another name, or "
            "add --public"
        )
    names = {sibling.rfilename for sibling in there.siblings or []}
    others = sorted(names - {p.name for p in found.parts} - {".gitattributes"})
    if others:
        raise UnrefuseError(
            f"{made.repo_id} holds other files already ({', '.join(others[:3])}): nothing was "
            "uploaded, because readers would take both for one model; choose another name"
        )
    with _hub_errors(
        made.repo_id, "none of its files is visible there; run the same command again to go on"
    ):
        commit = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(p.name, p.source) for p in found.parts],
            commit_message=f"unrefuse {version('unrefuse')}",
            parent_commit=there.sha,
        )
    return {"url": str(made), "commit": commit.oid, "private": there.private}


@contextmanager
def _hub_errors(repo: str, state: str) -> Iterator[None]:
    """What the hub client raises, in one line that says what is there now. Nothing secret is in it:
    no token is in a message, and the signature of an address is cut."""
    try:
        yield
    except UnrefuseError:
        raise
    except Exception as error:  # the hub client raises its own, httpx's and the system's kinds
        raise UnrefuseError(f"{_reason(error, repo)}; {state}") from None


def _reason(error: BaseException, repo: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = error
    while cause.__cause__ and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    said = re.sub(r"\?\S+", "", first_line(cause))
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status == 401:
            return f"the hub does not accept this token: {LOGIN}"
        if status == 403:
            return f"this token may not write to {repo}: use a token with write access there"
        return f"the hub does not accept {repo} (status {status}): {said}"
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to upload"
    return f"the upload to {constants.ENDPOINT} broke off: {said}"

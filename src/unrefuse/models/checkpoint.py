"""A checkpoint on disk: which files it is, whether it is whole, what is in it. Nothing is loaded.

What is decided here is decided for loading, measuring, hashing, editing and copying alike.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.models.files import check_file, read_object, walk
from unrefuse.models.header import Stored, Tensors, read_header
from unrefuse.models.quantized import check_full
from unrefuse.progress import stderr

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".gguf", ".ggml", ".h5"),
    *(".msgpack", ".ot", ".tflite", ".onnx", ".onnx_data", ".onnx.data"),
)
# The same weights in a form that transformers does not load.
SECOND_COPY = ["consolidated*", "original/*", "onnx/*"]
BESIDE = 2**24  # bytes of what is saved beside the weights, about
# At the top of a saved model, these tell of the edit that made it.
CARD = "README.md"
SUMS, SBOM = "SHA256SUMS", "sbom.cdx.json"
OF_AN_EDIT = (
    *(CARD, "run.json", "report.html", "transcripts.jsonl", "result.png", "tuning"),
    *(SUMS, SBOM),
)


@dataclass(frozen=True)
class Chosen:
    """The weight files of a checkpoint, in order, and what names them: an index, with the file of
    each tensor, where there is one."""

    files: list[Path]
    index: Path | None
    where: dict[str, Path]


def find_folder(config: RunConfig) -> Path:
    """The local folder of `config.model`: the demo, a folder, or a hub model, downloaded.

    Raises UnrefuseError for a name that is none of these.
    """
    name = config.model
    try:
        folder = Path(name).expanduser()
        is_there, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long; `~` of nobody
        raise UnrefuseError(f"cannot read the folder {name}: {first_line(error)}") from None
    if name == "demo":
        from unrefuse.models.demo import demo_model

        return demo_model()
    if is_folder:
        return folder
    if is_there:
        raise UnrefuseError(f"{name} is a file: name the folder of the model")
    from huggingface_hub.errors import HFValidationError

    try:
        return snapshot(config)
    except HFValidationError:
        raise UnrefuseError(
            f"no such folder, and not a valid name of a hub model: {name}"
        ) from None
    except Exception as error:  # the hub client raises its own, httpx's and the system's kinds
        raise not_given(name, error) from None


def snapshot(config: RunConfig, local_files_only: bool = False) -> Path:
    """Where the cache has what a hub model needs to be run. What lacks is downloaded, or with
    `local_files_only` an error of the hub client's."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", CARD, "LICEN[CS]E*"]
    patterns += ["*.bin"] if config.allow_pickle else []
    patterns += ["*.py"] if config.trust_remote_code else []
    return Path(
        snapshot_download(
            config.model,
            revision=config.revision,
            allow_patterns=patterns,
            ignore_patterns=SECOND_COPY,
            local_files_only=local_files_only,
        )
    )


def not_given(name: str, error: Exception) -> UnrefuseError:
    """What is told where the hub does not give a model."""
    return UnrefuseError(
        f"no such folder, and cannot load {name!r} from the hub: {first_line(error)}"
    )


def check_checkpoint(folder: Path, config: RunConfig) -> Tensors:
    """The tensors of a checkpoint that is whole and has full weights.

    Reads the config and the header of every shard. Raises UnrefuseError; loads no weights.
    """
    tensors = check_whole(folder, config)
    check_full(folder, tensors)
    return tensors


def check_whole(folder: Path, config: RunConfig) -> Tensors:
    """The tensors of a checkpoint whose files are all there. Raises UnrefuseError."""
    adapter = (folder / "adapter_config.json").is_file()
    if not os.path.lexists(folder / "config.json"):
        found = "an adapter: merge it into its model" if adapter else "not a model"
        raise UnrefuseError(f"{folder} is {found}: there is no config.json in it")
    if adapter:
        raise UnrefuseError(
            f"{folder} holds an adapter beside the weights, and some programs would add it: merge "
            "the adapter, or move adapter_config.json away"
        )
    for file in other_files(folder):
        check_file(file)
    chosen = _choose(folder)
    if chosen.files[0].suffix == ".bin" and not config.allow_pickle:
        raise UnrefuseError(
            f"{chosen.files[0]} is a pickle, which can run code; if you trust it, add "
            "--allow-pickle"
        )
    if chosen.index:
        single = chosen.index.with_name(chosen.index.name.removesuffix(".index.json"))
        if single.exists() and single not in chosen.files:
            stderr.print(
                f"the weights are those that {chosen.index} names; {single.name} is not used",
            )
    return checkpoint_tensors(folder)


def checkpoint_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, in order, from its index or by the standard names.

    Raises UnrefuseError where there are none, and for an index that is damaged or leads elsewhere.
    """
    return _choose(folder).files


def checkpoint_tensors(folder: Path) -> Tensors:
    """The tensors in each of the `checkpoint_files`; their data is not read.

    Raises UnrefuseError for a missing or damaged file, a tensor in two files, and an index that
    says something else.
    """
    chosen = _choose(folder)
    tensors: dict[Path, dict[str, Stored]] = {}
    where: dict[str, Path] = {}
    for file in chosen.files:
        if not file.exists() and not file.is_symlink():
            raise UnrefuseError(f"the checkpoint is not complete: {file} is missing")
        if file.suffix == ".bin":
            from unrefuse.models.weights import read_pickle_header

            tensors[file] = read_pickle_header(file)
        else:
            tensors[file] = read_header(file)
        if twice := sorted(where.keys() & tensors[file].keys()):
            raise UnrefuseError(
                f"{twice[0]} is both in {where[twice[0]]} and in {file.name}: programs differ in "
                "which one they read"
            )
        where |= dict.fromkeys(tensors[file], file)
    for name, file in chosen.where.items():
        if where.get(name) != file:
            raise UnrefuseError(
                f"the checkpoint is not complete: {chosen.index} says that {name} is in {file.name}"
                ", and it is not"
            )
    return tensors


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 over the bytes of the weight files, in order."""
    digest = hashlib.sha256()
    for file in checkpoint_files(folder):
        with file.open("rb") as data:
            while chunk := data.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def other_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that are not weights and go into a copy with other weights.

    All in its sub-folders too, but those that tell of an edit, and indices of other weights and of
    pickles, which no copy has.
    """
    index = _choose(folder).index
    if index and index.name == PICKLE_INDEX:
        index = None
    return [
        file
        for file in walk(folder)
        if not (_is_weights(file) or file.is_dir())
        and not (file.name.endswith(".index.json") and file != index)
        and file.relative_to(folder).parts[0] not in OF_AN_EDIT
    ]


def left_out(folder: Path) -> list[str]:
    """What no copy gets: weights that are none of the `checkpoint_files`, since they would be taken
    for the edited ones, and links to folders, since these lead anywhere."""
    chosen = set(checkpoint_files(folder))
    return [
        str(file.relative_to(folder))
        for file in walk(folder)
        if (_is_weights(file) or file.is_dir())
        and file not in chosen
        and file.relative_to(folder).parts[0] not in OF_AN_EDIT
    ]


def _is_weights(file: Path) -> bool:
    return file.name.lower().endswith(WEIGHTS)


def _choose(folder: Path) -> Chosen:
    """The files that are the model: what its config names, as transformers lets it, else those of
    an index, else the one of the standard name."""
    named = _named(folder)
    for name in [named] if named else (INDEX, SINGLE, PICKLE_INDEX, PICKLE):
        file = folder / name
        if named or os.path.lexists(file):
            if not name.endswith(".index.json"):
                return Chosen([file], None, {})
            where = _read_index(folder, file)
            return Chosen(sorted(set(where.values())), file, where)
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    others = ", ".join(file.name for file in there if _is_weights(file))
    raise UnrefuseError(
        f"{folder} is not a model: there are no weights ({SINGLE}) in it"
        f"{others and ', only '}{others}"
    )


def _named(folder: Path) -> str | None:
    """What `config.json` says of its weights (`transformers_weights`), for most models nothing."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config.get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # others tell what is wrong with it
    if name is None:
        return None
    _inside(folder, name, folder / "config.json", (".safetensors", ".safetensors.index.json"))
    return str(name)


def _read_index(folder: Path, index: Path) -> dict[str, Path]:
    """The file of each tensor, by an index. Raises UnrefuseError."""
    where = read_object(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UnrefuseError(f"{index} is damaged: its weight_map names no files")
    ending = ".bin" if index.name == PICKLE_INDEX else ".safetensors"
    return {name: _inside(folder, file, index, ending) for name, file in where.items()}


def _inside(folder: Path, name: Any, named_in: Path, endings: str | tuple[str, ...]) -> Path:
    """The path of a file that lies in `folder`, or below. Raises UnrefuseError for any other
    name."""
    path = PurePosixPath(name) if isinstance(name, str) and name.isprintable() else None
    if path is None or path.is_absolute() or ".." in path.parts or set("\\:") & set(name):
        raise UnrefuseError(f"{named_in} names weights outside of its folder, or none: {name!r}")
    if not path.name.endswith(endings):
        raise UnrefuseError(f"{named_in} names {name!r} among weights of another kind")
    return folder / path

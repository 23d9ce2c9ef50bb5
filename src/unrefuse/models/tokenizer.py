"""The tokenizer of a model folder, and the tokens that end a reply."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from unrefuse.errors import UnrefuseError, raised_as
from unrefuse.models.files import read_object


def load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in a checkpoint folder. Raises UnrefuseError, for the file at fault."""
    try:
        with raised_as(f"cannot read the tokenizer in {folder}"):
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code
            )
    except UnrefuseError as error:
        files = [file for file in folder.iterdir() if re.search("token|vocab", file.name)]
        if not files:
            raise UnrefuseError(f"{folder} has no tokenizer: no tokenizer.json is in it") from error
        for file in sorted(files):
            if file.suffix == ".json":
                read_object(file)
        if type(error.__cause__) is Exception:  # what the library of tokenizers raises
            installed = version("tokenizers")
            raise UnrefuseError(
                f"{error}: it is damaged, or needs a newer version of tokenizers than {installed}"
            ) from error
        if not (folder / "tokenizer.json").is_file():
            raise UnrefuseError(f"{error}; there is no tokenizer.json in it") from error
        raise
    processor = folder / "chat_template.json"
    if not found.chat_template and processor.is_file():  # of a vision-language model
        found.chat_template = read_object(processor).get("chat_template")
    return found


def end_of_turn(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the tokens that end a reply: the tokenizer's, and those of the generation config
    or, where there is none, of the config. Raises UnrefuseError."""
    file = folder / "generation_config.json"
    given: list[Any] = [tokenizer.eos_token_id]
    if file.is_file():
        read_object(file)
        with raised_as(f"cannot read {file}"):
            stated = [GenerationConfig.from_pretrained(folder).eos_token_id]
    else:  # not the class of the config, which says 2 where the file says nothing
        file = folder / "config.json"
        config = read_object(file)
        parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
        stated = [part.get("eos_token_id") for part in parts]
    for ends in stated:
        given += ends if isinstance(ends, list) else [ends]
    ends = [end for end in given if end is not None]
    if strange := [end for end in ends if type(end) is not int]:
        raise UnrefuseError(f"{file}: the eos_token_id {strange[0]!r} is not the number of a token")
    return sorted(set(ends))

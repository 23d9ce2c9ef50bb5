"""Replies by vLLM, where it is installed: a model, and its edit as a LoRA adapter, in one load."""

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.engine.generate import Reply, reply_of, tell_thinking
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.models.checkpoint import checkpoint_files, left_out, other_files
from unrefuse.models.load import expected_thoughts
from unrefuse.models.tokenizer import load_tokenizer
from unrefuse.prompts.chat import encode, opened_thinking, reply_text, thinking_tags
from unrefuse.prompts.thinking import thought_tokens

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank


def import_vllm() -> Any:
    """The package. Raises UnrefuseError where it is not installed."""
    # Its log goes to stdout, which is for what a command prints.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UnrefuseError(
            f"--backend vllm needs vLLM, on a GPU that it supports: pip install vllm ({error})"
        ) from None


def adapter_rank(folder: Path) -> int:
    """The step of vLLM's ranks that holds the adapter in `folder`. Raises UnrefuseError for what is
    none, or one that vLLM can't load: of experts, of biases, or of too high a rank."""
    try:
        stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank, more = int(stored["r"]), stored.get("lora_bias") or stored.get("target_parameters")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnrefuseError(
            f"there is no adapter of `unrefuse export --lora` in {folder}: {first_line(error)}"
        ) from None
    if more or rank > RANKS[-1]:
        raise UnrefuseError(
            f"{folder} edits experts or biases, or its rank is above {RANKS[-1]}, which vLLM "
            "can't load: evaluate the saved model instead"
        )
    return next(step for step in RANKS if step >= rank)


def vllm_replies(
    folder: Path, config: RunConfig, prompts: Sequence[str], adapter: Path | None = None
) -> list[list[Reply]]:
    """Greedy replies of the model in `folder`, and then, with `adapter`, of its edited form.

    They run to the end of the turn or `config.reply_tokens` after their thoughts, also where they
    have refused before.
    Raises UnrefuseError where vLLM is not installed or can't run the model, and for a base model.
    """
    with _model_alone(folder) as alone:
        return _replies(alone, config, prompts, adapter)


@contextmanager
def _model_alone(folder: Path) -> Iterator[Path]:
    """The folder, or where more weights lie at its top than those of the model, one with links to
    the model's files: vLLM decides by itself which files it reads."""
    if all("/" in name for name in left_out(folder)):
        yield folder
        return
    with TemporaryDirectory(prefix="unrefuse-") as made:
        for file in (*checkpoint_files(folder), *other_files(folder)):
            link = Path(made, file.relative_to(folder))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield Path(made)


def _replies(
    folder: Path, config: RunConfig, prompts: Sequence[str], adapter: Path | None
) -> list[list[Reply]]:
    vllm = import_vllm()
    tokenizer = load_tokenizer(folder, config.trust_remote_code)
    ids = encode(tokenizer, prompts)
    longest = config.reply_tokens + expected_thoughts(tokenizer, config.thinking_tokens)
    options: dict[str, Any] = {
        "model": str(folder),
        "dtype": config.dtype,
        "seed": config.seed,
        "trust_remote_code": config.trust_remote_code,
        "max_model_len": max(map(len, ids)) + longest,
    }
    if config.batch_size:
        options["max_num_seqs"] = config.batch_size
    requests = [None]
    if adapter:
        options |= {"enable_lora": True, "max_lora_rank": adapter_rank(adapter)}
        lora = importlib.import_module("vllm.lora.request")
        requests.append(lora.LoRARequest("edit", 1, str(adapter)))
    greedy = vllm.SamplingParams(temperature=0, max_tokens=longest)
    asked = [{"prompt_token_ids": row} for row in ids]
    try:
        engine = vllm.LLM(**options)
        found = [engine.generate(asked, greedy, lora_request=request) for request in requests]
    except (OSError, ValueError, RuntimeError) as error:
        raise UnrefuseError(f"vLLM cannot run {config.model}: {first_line(error)}") from None

    thinking, tags = opened_thinking(tokenizer), thinking_tags(tokenizer)

    def text_of(tokens: Sequence[int]) -> str:
        return thinking + reply_text(tokenizer, tokens, tags)

    def reply(prompt: str, request: Any) -> Reply:
        out = request.outputs[0]
        # What stopped a reply, the end of the turn, is the last of its tokens.
        tokens = list(out.token_ids[:-1] if out.finish_reason == "stop" else out.token_ids)
        tokens = tokens[: thought_tokens(tokens, text_of) + config.reply_tokens]
        return reply_of(tokens, text_of, prompt)

    replies = [list(map(reply, prompts, outputs)) for outputs in found]
    for when, some in zip(("replies", "edited"), replies, strict=False):
        tell_thinking(some, config.thinking_tokens, when)
    return replies

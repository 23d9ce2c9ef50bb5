"""Prompts to tokens: the model's own chat template, and left-padded batches."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unrefuse.errors import UsageError
from unrefuse.prompts.thinking import is_tag, opened_tag

Messages = Sequence[dict[str, str]]  # of a chat: role and content


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], before: Messages = ()
) -> list[list[int]]:
    """Each prompt as the last user turn of a chat, up to and with the generation prompt.

    `before` are the messages that come first: a system prompt, or earlier turns.
    Prompts are untrusted: control tokens inside of them are encoded as ordinary text.
    Raises UsageError where the model has no chat template.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "the model has no chat template, so it is a base model: unrefuse edits chat models"
        )
    chats = [[*before, {"role": "user", "content": prompt}] for prompt in prompts]
    ids = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )
    return cast(list[list[int]], ids)


def thinking_tags(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tags of thinking blocks that are special tokens, which decoding leaves out."""
    added = tokenizer.added_tokens_decoder
    return {i: t.content for i, t in added.items() if t.special and is_tag(t.content)}


def reply_text(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], tags: Mapping[int, str]
) -> str:
    """The text of a reply without its special tokens but those of `thinking_tags`: without these,
    thoughts would be taken for the reply."""
    text, start = "", 0
    for i in [i for i, token in enumerate(tokens) if token in tags]:
        text += _decoded(tokenizer, tokens[start:i]) + tags[tokens[i]]
        start = i + 1
    return text + _decoded(tokenizer, tokens[start:])


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def opened_thinking(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tag of the thinking block that the chat template opens for the reply, or nothing."""
    return opened_tag(str(tokenizer.decode(encode(tokenizer, ["Hi"])[0])))


def left_pad(
    sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both `(batch, tokens)`, padded on the left.

    The padding token is 0: under the mask its value has no effect.
    """
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def batches(sequences: Sequence[Sized], size: int) -> Iterator[list[int]]:
    """Indices in batches of `size`, sorted by length so that little is padded."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]

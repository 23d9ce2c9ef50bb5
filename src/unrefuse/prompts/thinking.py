"""Thinking blocks: what a model writes for itself, before its reply."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence

_NAME = r"(?:\w+:)?(?:think(?:ing)?|thought|reasoning)"
_TAG = rf"<({_NAME})>"
# An empty group: the block has come to the end of the text, not to its own.
_BLOCK = re.compile(
    rf"^\s*{_TAG}.*?(?:</\1>|($))"
    r"|^\s*\[THINK\].*?(?:\[/THINK\]|($))"
    r"|^\s*<\|channel>thought.*?(?:<channel\|>|($))"
    r"|^.*?</think>"  # opened by the chat template
    r"|^<\|channel\|>(?:(?:analysis|commentary)\b.*?)??"
    r"(?:(?:<\|channel\|>)?final[^<]*<\|message\|>|($))"
    r"|^analysis(?=[A-Z\"'“]).*?(?:assistantfinal|($))",  # the same without its special tokens
    re.DOTALL,
)
_OPENED = re.compile(rf"(?:{_TAG}|\[THINK\])(?=\s*$)")
_CLOSED = re.compile(rf"</{_NAME}>|\[/THINK\]|<channel\|>|final")
_MARK = re.compile(rf"</?{_NAME}>|\[/?THINK\]|<\|channel>|<channel\|>")
_KNOWN = re.compile(rf"{_MARK.pattern}|<\|channel\|>")
CLOSING_TOKENS = 16  # that hold the end of a block, in whatever tokens it is written
CIRCLE, ROUNDS = 64, 4  # the most tokens of a circle, and how often it is gone round


def opened_tag(prompt: str) -> str:
    """The tag of the thinking block that a prompt leaves open for the reply, or nothing."""
    found = _OPENED.search(prompt)
    return found.group() if found else ""


def after_thinking(text: str) -> str:
    """What a reply says after its thinking block; nothing where that has no end.

    Known are tags such as `<think>`, the channel of Gemma 4, and those of gpt-oss (harmony), which
    decoding without special tokens leaves as `analysis...assistantfinal...`.
    """
    return _BLOCK.sub("", text, count=1)


def is_thinking(text: str) -> bool:
    """Whether a reply has not come to the end of its thinking block."""
    found = _BLOCK.match(text)
    return found is not None and "" in found.groups()


def may_close(end: str) -> bool:
    """Whether a thinking block may end in the last `CLOSING_TOKENS` of a text."""
    return _CLOSED.search(end) is not None


def is_tag(token: str) -> bool:
    """Whether a token begins or ends a thinking block."""
    return _MARK.fullmatch(token) is not None


def may_think(template: str) -> bool:
    """Whether a chat template knows of thoughts, so that its model may have some."""
    return _KNOWN.search(template) is not None


def in_circles(tokens: Sequence[int]) -> bool:
    """Whether the last tokens of a text, 256, repeat one run of at most 64: greedy thoughts that
    have come so far do not end."""
    last = list(tokens[-CIRCLE * ROUNDS :])
    periods = range(1, CIRCLE + 1)
    return len(last) == CIRCLE * ROUNDS and any(last[p:] == last[:-p] for p in periods)


def thought_tokens(reply: Sequence[int], text_of: Callable[[Sequence[int]], str]) -> int:
    """How many tokens of a reply are its thinking block: all where that has no end, 0 where there
    is none. `text_of` decodes the reply's first tokens."""
    text = text_of(reply)
    if is_thinking(text):
        return len(reply)
    if _BLOCK.match(text) is None:
        return 0

    def ended(count: int) -> bool:
        text = text_of(reply[:count])
        return _BLOCK.match(text) is not None and not is_thinking(text)

    return bisect_left(range(len(reply) + 1), True, key=ended)

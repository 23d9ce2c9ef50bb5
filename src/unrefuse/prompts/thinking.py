"""Thinking blocks: what a model writes for itself, before its reply."""

import re

_TAG = r"<((?:\w+:)?(?:think(?:ing)?|thought|reasoning))>"
_BLOCK = re.compile(
    rf"^\s*{_TAG}.*?(?:</\1>|$)"
    r"|^\s*\[THINK\].*?(?:\[/THINK\]|$)"
    r"|^.*?</think>"  # opened by the chat template
    r"|^<\|channel\|>(?:(?:analysis|commentary)\b.*?)??(?:(?:<\|channel\|>)?final[^<]*<\|message\|>|$)"
    r"|^analysis(?=[A-Z\"'“]).*?(?:assistantfinal|$)",  # the same without its special tokens
    re.DOTALL,
)
_OPENED = re.compile(rf"(?:{_TAG}|\[THINK\])(?=\s*$)")


def opened_tag(prompt: str) -> str:
    """The tag of the thinking block that a prompt leaves open for the reply, or nothing."""
    found = _OPENED.search(prompt)
    return found.group() if found else ""


def after_thinking(text: str) -> str:
    """What a reply says after its thinking block; nothing where that has no end.

    Known are tags such as `<think>`, and the channels of gpt-oss (harmony), which decoding
    without special tokens leaves as `analysis...assistantfinal...`.
    """
    return _BLOCK.sub("", text, count=1)

"""Replies of a model that is served: by vLLM, llama.cpp, Ollama, LM Studio, or any such server."""

import re
from collections.abc import Sequence
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.detector.refusal import grade
from unrefuse.engine.endpoint import (
    WORKERS,
    Answer,
    Endpoint,
    ask_all,
    ask_once,
    forget,
    kept,
    parse_endpoint,
)
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError
from unrefuse.progress import stderr
from unrefuse.prompts.chat import Messages
from unrefuse.prompts.thinking import after_thinking

KEY = "UNREFUSE_SERVER_KEY"
SAMPLE, OPENING = 8, 16  # replies of a run that was stopped that are asked again, and their tokens
# What only the server decides.
_SERVERS = ("revision", "dtype", "device", "device_map", "stream", "backend", "allow_pickle",
            "trust_remote_code")  # fmt: skip
# Words; and single characters where a script writes none apart, and of what is no word.
_WORD = re.compile(r"[^\W\u2e80-\uffff]+|\S")


def endpoint_of(name: str | None, config: RunConfig) -> Endpoint | None:
    """The endpoint that a model's name is, `openai:URL#MODEL`; None for another name.

    Raises UnrefuseError for one that is wrong, and for settings that are the server's.
    """
    if name is None or not name.startswith("openai:"):
        return None
    endpoint = parse_endpoint(name, KEY)
    if endpoint is None:
        raise UnrefuseError(f"{name!r} is not a served model: write openai:URL#MODEL")
    given = [s for s in _SERVERS if getattr(config, s) != RunConfig.model_fields[s].default]
    if given:
        raise UnrefuseError(f"the server decides on {', '.join(given)}: leave it out")
    return endpoint


def thinking_of(endpoint: Endpoint, limit: int, thoughts: int) -> str | None:
    """Whether the model thinks before it replies (None: no), by one question, and the tag that its
    thoughts lack because the chat template opens it. Raises UnrefuseError where there is no such
    model, before it is asked for more."""
    chat = _chat("What is two and two?")
    answer = ask_once(endpoint, chat, limit)
    if not (answer.ended or answer.thought):  # a thought may show by its end alone
        try:
            answer = ask_once(endpoint, chat, limit + thoughts)
        except UnrefuseError:  # more than its context holds
            return None
    if answer.thought:
        return ""
    if after_thinking(answer.text) == answer.text:
        return None
    return "<think>" if "</think>" in answer.text and "<think>" not in answer.text else ""


def served_replies(
    endpoint: Endpoint, config: RunConfig, prompts: Sequence[str], thinking: str | None, when: str
) -> tuple[list[Reply], dict[str, Any]]:
    """The replies, greedy, `config.batch_size` at once, and the `tokens` that the server counted.

    Of a run to the same `config.out` that was stopped, they are not asked again. Replies run to
    the end of the turn or `config.reply_tokens`, also where they have refused before; a model that
    thinks has `config.thinking_tokens` more. Raises UnrefuseError where the server fails.
    """
    run = _run(config)
    limit = config.reply_tokens + (0 if thinking is None else config.thinking_tokens)
    chats = [_chat(prompt) for prompt in prompts]
    known = kept(endpoint, chats, limit, run)
    if n := sum(answer is not None for answer in known):
        if _goes_on(endpoint, chats, known, min(OPENING, config.reply_tokens)):
            message = f"{n} of {len(chats)} replies are kept of a run that was stopped"
        else:
            forget(run)
            message = f"{endpoint.url} answers otherwise than before: all is asked again"
        stderr.print(f"{when}: {message}")
    found = ask_all(endpoint, chats, limit, when, config.batch_size or WORKERS, run)
    answers = [answer for answer in found if answer]
    counts = [(answer.read, answer.wrote) for answer in answers]
    tokens = [None if None in column else sum(column) for column in zip(*counts, strict=True)]
    replies = [_reply(p, a, thinking or "") for p, a in zip(prompts, answers, strict=True)]
    endless = sum(
        not a.ended and not after_thinking(r.text).strip()
        for a, r in zip(answers, replies, strict=True)
    )
    if endless:
        stderr.print(
            f"{when}: {endless} of {len(replies)} thoughts did not end in {limit} tokens, so there "
            "is no reply: these count as broken",
        )
    return replies, {"read": tokens[0], "wrote": tokens[1]}


def forget_replies(config: RunConfig) -> None:
    """Removes what is kept of a run that came to its end. Raises UnrefuseError."""
    forget(_run(config))


def _run(config: RunConfig) -> str:
    return str(config.out and config.out.absolute())


def _chat(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]


def _goes_on(
    endpoint: Endpoint, chats: Sequence[Messages], known: Sequence[Answer | None], tokens: int
) -> bool:
    """Whether the model is the one that gave the answers so far: a name says nothing of what is
    served. A few openings have to be the same; later a server may round otherwise."""
    pairs = [(chat, a) for chat, a in zip(chats, known, strict=True) if a][:SAMPLE]
    return all(_whole(a).startswith(_whole(ask_once(endpoint, c, tokens))) for c, a in pairs)


def _whole(answer: Answer) -> str:
    return (answer.thought.strip() + answer.text.strip()).rstrip("\ufffd")


def _reply(prompt: str, answer: Answer, opened: str) -> Reply:
    text = opened + answer.text
    if answer.thought:
        thought = answer.thought.replace("</think>", "")
        text = f"<think>\n{thought}\n</think>\n\n{answer.text}"
    tokens = words(after_thinking(text))
    return Reply(text, tokens, grade(text, tokens, prompt))


def words(text: str) -> tuple[int, ...]:
    """Numbers for the words of a text, in the order in which each first comes: in place of token
    ids, to tell loops by, where the tokenizer is the server's."""
    ids: dict[str, int] = {}
    return tuple(ids.setdefault(word, len(ids)) for word in _WORD.findall(text))

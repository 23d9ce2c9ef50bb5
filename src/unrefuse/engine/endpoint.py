"""A chat model behind an OpenAI-compatible URL: many chats at once, answers kept on disk."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from diskcache import Cache, JSONDisk, Timeout
from platformdirs import user_cache_path

from unrefuse.errors import UnrefuseError, first_line
from unrefuse.progress import stderr, track
from unrefuse.prompts.chat import Messages

RETRIES = 4  # of timeouts, lost connections, 429 and 5xx, by the client, with growing waits
WORKERS = 8
RUN_SECONDS = 7 * 24 * 3600  # for which the answers of a run that was stopped are kept
HINT = "; does the URL end as the server expects, mostly in /v1?"
HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host",
           "user-agent"}  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    """`model` at the base URL `url`; `key` is the environment variable that holds the URL's key:
    one of our own, so that another service's key goes to no URL."""

    url: str
    model: str
    key: str

    @property
    def name(self) -> str:
        return f"openai:{self.url}#{self.model}"


@dataclass(frozen=True)
class Answer:
    """What a model said, and before it thought, where the server tells these apart; whether it
    came to an end, and the tokens that it read and wrote (None: the server does not say)."""

    text: str
    thought: str
    ended: bool
    read: int | None
    wrote: int | None


def parse_endpoint(spec: str, key: str) -> Endpoint | None:
    """The endpoint of `openai:URL#MODEL`, None for what has another form.

    Raises UnrefuseError unless URL is a base URL like https://host/v1, with no secret in it.
    """
    url, _, model = spec.removeprefix("openai:").rpartition("#")
    if not spec.startswith("openai:") or not url or not model:
        return None
    try:
        parsed = urlsplit(url)
        parsed.port  # noqa: B018  # raises for one that is no number
    except ValueError:
        raise UnrefuseError("the URL is not valid: write it like https://host:8000/v1") from None
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise UnrefuseError("the URL must begin with http:// or https://")
    if "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise UnrefuseError(f"leave keys out of the URL, which is stored: set {key} instead")
    return Endpoint(url.rstrip("/"), model, key)


def ask_once(endpoint: Endpoint, chat: Messages, limit: int) -> Answer:
    """The answer to one chat, from the server and not from the disk. Raises UnrefuseError."""
    with _client(endpoint) as client:
        answer = _answer(client, endpoint, chat, limit, False)
    assert answer is not None
    return answer


def ask_all(
    endpoint: Endpoint,
    chats: Sequence[Messages],
    limit: int,
    what: str,
    workers: int = WORKERS,
    run: str = "",
    wanted: Callable[[Answer], bool] = lambda answer: True,
    passing: bool = False,
) -> list[Answer | None]:
    """The answers to all chats, of at most `limit` tokens each, at temperature 0.

    Those that are `wanted` are kept on disk as they come, and not asked for again: for good, or, of
    a `run`, until `forget(run)`. With `passing`, a chat that the server will not have (status 400:
    too long, or filtered) is None. Raises UnrefuseError where the server fails for longer.
    """
    keys = [_key(endpoint, chat, limit, run) for chat in chats]
    with _cache() as cache, _client(endpoint) as client:
        found: dict[str, Answer | None] = dict(_kept(cache, keys))
        todo = {k: chat for k, chat in zip(keys, chats, strict=True) if k not in found}

        def job(key: str) -> Answer | None:
            answer = _answer(client, endpoint, todo[key], limit, passing)
            if answer and wanted(answer):
                cache.set(key, asdict(answer), expire=RUN_SECONDS if run else None, tag=run or None)
            return answer

        pool = ThreadPoolExecutor(workers)
        jobs = {pool.submit(job, key): key for key in todo}
        try:
            for done in track(as_completed(jobs), what, len(jobs)):
                found[jobs[done]] = done.result()
        except BaseException:
            stderr.print(
                f"{len(found)} of {len(set(keys))} answers are kept, and are not asked for again"
            )
            raise
        finally:
            pool.shutdown(cancel_futures=True)  # what is under way is paid for, and kept
    return [found[key] for key in keys]


def kept(
    endpoint: Endpoint, chats: Sequence[Messages], limit: int, run: str = ""
) -> list[Answer | None]:
    """What is on disk of the answers that `ask_all` would give. Raises UnrefuseError."""
    keys = [_key(endpoint, chat, limit, run) for chat in chats]
    with _cache() as cache:
        found = _kept(cache, keys)
    return [found.get(key) for key in keys]


def forget(run: str) -> None:
    """Removes the answers of a run from the disk."""
    with _cache() as cache:
        cache.evict(run)


def _kept(cache: Cache, keys: Sequence[str]) -> dict[str, Answer]:
    return {key: Answer(**value) for key in keys if (value := cache.get(key)) is not None}


def _key(endpoint: Endpoint, chat: Messages, limit: int, run: str) -> str:
    parts = [endpoint.url, endpoint.model, list(chat), limit, run, [f.name for f in fields(Answer)]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _cache() -> Iterator[Cache]:
    folder = user_cache_path("unrefuse") / "endpoints"
    try:
        with Cache(folder, disk=JSONDisk) as cache:
            yield cache
    except (OSError, sqlite3.Error, Timeout) as error:
        raise UnrefuseError(f"cannot use the cache in {folder}: {first_line(error)}") from None


@contextmanager
def _client(endpoint: Endpoint) -> Iterator[Any]:
    from openai import DefaultHttpxClient, OpenAI

    key = os.environ.get(endpoint.key, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UnrefuseError(f"{endpoint.key} holds characters that a key cannot have")

    def ours_only(request: Any) -> None:
        # The client adds headers from the environment: other services' keys and names.
        for name in set(request.headers) - HEADERS:
            del request.headers[name]
        if key:
            request.headers["Authorization"] = f"Bearer {key}"

    # No redirects: the key goes to the host that the user named, and to no other.
    web = DefaultHttpxClient(follow_redirects=False, event_hooks={"request": [ours_only]})
    with OpenAI(
        api_key=key or "none", base_url=endpoint.url, max_retries=RETRIES, http_client=web
    ) as client:
        yield client


def _answer(
    client: Any, endpoint: Endpoint, chat: Messages, limit: int, passing: bool
) -> Answer | None:
    from openai import APIStatusError, OpenAIError

    try:
        return _read(_complete(client, endpoint.model, chat, limit))
    except APIStatusError as error:
        if passing and error.status_code == 400:
            return None
        raise UnrefuseError(f"{endpoint.url}: {_status(error, endpoint)}") from None
    except OpenAIError as error:
        trouble = first_line(error.__cause__ or error)
        raise UnrefuseError(f"{endpoint.url} cannot be reached: {trouble}") from None
    except ValueError:
        raise UnrefuseError(f"{endpoint.url} did not return a chat completion{HINT}") from None


def _read(completion: Any) -> Answer:
    """Raises ValueError for what is no chat completion; the client checks no types."""
    try:
        choice = completion.choices[0]
        text, thought = (
            next((said for name in names if (said := getattr(choice.message, name, None))), "")
            for names in (("content", "refusal"), ("reasoning_content", "reasoning"))
        )
        ended = choice.finish_reason != "length"
        read, wrote = (
            count if isinstance(count := getattr(completion.usage, name, None), int) else None
            for name in ("prompt_tokens", "completion_tokens")
        )
    except (AttributeError, IndexError, TypeError, KeyError):
        raise ValueError from None
    if not (isinstance(text, str) and isinstance(thought, str)):
        raise ValueError
    return Answer(text, thought, ended, read, wrote)


def _complete(client: Any, model: str, chat: Messages, limit: int) -> Any:
    from openai import BadRequestError

    create = client.chat.completions.create
    try:
        return create(model=model, messages=chat, temperature=0, max_tokens=limit)
    except BadRequestError as error:
        if "max_completion_tokens" not in error.message:
            raise
        # Some models of OpenAI's take neither a temperature nor a limit of the old name.
        return create(model=model, messages=chat, max_completion_tokens=limit)


def _status(error: Any, endpoint: Endpoint) -> str:
    """What a server's status says, in one line; what a server says of a key may repeat it."""
    if error.status_code in (401, 403):
        return f"status {error.status_code}; the key comes from {endpoint.key}"
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or body.get("detail") or error.message)
    said = said.replace(os.environ.get(endpoint.key, "").strip() or "\0", "***")[:200]
    hint = f", and is there a model {endpoint.model!r}?" if error.status_code == 404 else ""
    return f"status {error.status_code}, {said!r}" + (f"{HINT[:-1]}{hint}" if hint else "")

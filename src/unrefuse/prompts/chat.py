"""Prompts to tokens: the model's own chat template, and left-padded batches."""

import signal
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unrefuse.errors import UnrefuseError, first_line, is_error
from unrefuse.prompts.sets import Prompt
from unrefuse.prompts.thinking import after_thinking, is_tag, opened_tag

Messages = Sequence[dict[str, str]]  # of a chat: role and content
RENDERING = 5.0  # seconds that a chat template may take for one chat
WRITTEN = 1_000_000  # characters that it may add to what is said
# Shows what a chat template does with a prompt: long, and of two lines, so that a cut one shows.
SAMPLE = """What is a volcano, and how does one form? Tell me in a sentence or two,
and then name three that have erupted in the last hundred years."""


class ChatError(UnrefuseError):
    """A chat that the model can't be given. `index` is that of the prompt at fault, None where it
    is the chat template or the tokenizer, whatever the prompt."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


@contextmanager
def placed(prompts: Sequence[Prompt]) -> Iterator[None]:
    """Around the encoding of these prompts: an error names the file and the line of the one at
    fault."""
    try:
        yield
    except ChatError as error:
        if error.index is None:
            raise
        raise UnrefuseError(f"{prompts[error.index].place}: {error}") from error


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    before: Messages = (),
    rows: int | None = None,
    places: int | None = None,
) -> list[list[int]]:
    """Each prompt as the last user turn of a chat, up to and with the generation prompt.

    `before` are the messages that come first: a system prompt, or earlier turns. `rows` is the
    number of tokens that the model has embeddings for, `places` how many it reads in all. Prompts
    are untrusted: control tokens inside of them are encoded as ordinary text. Raises ChatError
    where there is no chat template or it fails, and where the tokens do not hold the prompt, are
    too many, or are not all the model's.
    """
    control = list(tokenizer.get_added_vocab())
    parts = _takes_parts(tokenizer, control, rows)
    found = []
    for index, prompt in enumerate(prompts):
        messages = [*before, {"role": "user", "content": prompt}]
        try:
            ids = _encode(tokenizer, messages, parts, control, rows)
            if places is not None and len(ids) >= places:
                raise ChatError(f"{len(ids)} tokens are more than the model reads ({places})")
            found.append(ids)
        except ChatError as error:
            raise ChatError(f"{error} (prompt: {prompt!r:.60})", index) from error
    return found


def check_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], rows: int) -> None:
    """Raises ChatError where a model with embeddings for `rows` tokens lacks one of these."""
    if max(ids) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise ChatError(
            f"the tokenizer gives {token!r} the id {max(ids)}, and the model has embeddings for "
            f"{rows} tokens only: is it the tokenizer of another model?"
        )


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
    return opened_tag(str(tokenizer.decode(encode(tokenizer, [SAMPLE])[0])))


def _takes_parts(
    tokenizer: PreTrainedTokenizerBase, control: Sequence[str], rows: int | None
) -> bool:
    """Whether the chat template wants a content as a list of parts: given as a string, as nearly
    all templates want it, the template drops it or fails. Raises ChatError where it does both
    ways."""
    templates = tokenizer.chat_template
    if not templates:
        raise ChatError(
            "the model has no chat template, so it is a base model: unrefuse edits chat models"
        )
    if isinstance(templates, dict) and "default" not in templates:
        raise ChatError(
            f"the model has several chat templates ({', '.join(sorted(templates))}), and none is "
            "named default"
        )
    sample = [{"role": "user", "content": SAMPLE}]
    try:
        _encode(tokenizer, sample, False, control, rows)
        return False
    except ChatError as error:
        failed = error
    try:
        ids = _encode(tokenizer, sample, True, control, rows)
    except ChatError:
        raise failed from None
    # A part that was printed as it is in Python is no content.
    if _plain("'type': 'text', 'text'") in _plain(str(tokenizer.decode(ids))):
        raise failed
    return True


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    parts: bool,
    control: Sequence[str],
    rows: int | None,
) -> list[int]:
    """The tokens of one chat. Raises ChatError."""
    chat: Any = [
        {**m, "content": [{"type": "text", "text": m["content"]}] if parts else m["content"]}
        for m in messages
    ]

    def apply(**options: Any) -> Any:
        with _timed(RENDERING):
            return tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=False, **options
            )

    try:
        text: str = apply(tokenize=False)
        # No timer ends a tokenizer at work.
        if len(text) > WRITTEN + 8 * sum(len(m["content"]) for m in messages):
            raise ValueError(f"it writes {len(text):,} characters")
    except BaseException as error:  # a template raises anything
        if not is_error(error):
            raise
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ChatError(f"the chat template fails{line}: {first_line(error)}") from error
    # Slow where a tokenizer has thousands of added tokens, and idle where no text has one.
    sanitize = any(token in m["content"] for m in messages for token in control)
    try:
        ids: list[int] = apply(sanitize_control_tokens=sanitize)
    except BaseException as error:
        if not is_error(error):
            raise
        raise ChatError(f"the tokenizer fails: {first_line(error)}") from error
    # What an assistant thought, a template may leave out of later turns.
    said = [
        _plain(after_thinking(m["content"]) if m["role"] == "assistant" else m["content"])
        for m in messages
    ]
    got = _plain(str(tokenizer.decode(ids)))
    if not ids or not all(text in got for text in said):
        rendered = _plain(text)
        if not all(text in rendered for text in said):
            raise ChatError("the chat template leaves out the prompt, or a part of the chat")
        if not ids or tokenizer.unk_token_id not in ids:
            raise ChatError("the tokenizer loses the prompt, or a part of the chat")
    if rows is not None:
        check_ids(tokenizer, ids, rows)
    return ids


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    """Ends what runs in the block, a template that loops, after so much of the processor's time:
    with TimeoutError, in a main thread on a system that has such a timer."""
    if not hasattr(signal, "setitimer") or current_thread() is not main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds:g} seconds")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        # One that is still on its way would end the process.
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN if before == signal.SIG_DFL else before)


def _plain(text: str) -> str:
    """Letters and digits alone, in one form: what tokenizers and templates leave as it is."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


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

"""One reply as it is written: greedy, a piece of text as soon as it is decoded."""

from collections.abc import Generator

import torch
from transformers import DynamicCache

from unrefuse.engine.decode import LOST, end_tokens, next_tokens, text_of
from unrefuse.models.device import not_finite
from unrefuse.models.load import Model
from unrefuse.models.writers import text_config
from unrefuse.prompts.chat import Messages
from unrefuse.prompts.thinking import after_thinking, in_circles, is_thinking

# What later tokens may change: half of a character, and white space before a mark.
UNSETTLED = "\ufffd \t\n"
OPENING = 24  # characters that show whether a reply begins with a thinking block


@torch.inference_mode()
def talk(model: Model, messages: Messages, limit: int) -> Generator[str, None, bool]:
    """The pieces of the reply to the last of `messages`, a user's.

    Together they are the text of the reply as `text_of` gives it, with its thinking block; a
    character is never split. At most `limit` tokens come after the thoughts. Returns, as a
    generator does, whether the model ended its turn. Works under `hooked`, in any thread; a model
    has one set of hooks, so that two edits of it take turns (`hooked_steps`). Raises ChatError for
    messages that the chat template does not take or that are too long for the model, and
    UnrefuseError where the logits are not finite.
    """
    *before, last = messages
    (following,) = model.encode([last["content"]], before)
    room = getattr(text_config(model.network), "max_position_embeddings", None) or 2**40
    ends, cache = end_tokens(model), DynamicCache(config=model.network.config)
    read, reply, thoughts, shown = 0, list[int](), 0, 0
    text, thinking, ended = "", False, False
    while read + len(following) < room:
        read += len(following)
        ids = torch.tensor([following], device=model.device)
        mask = torch.ones(1, read, dtype=torch.long, device=model.device)
        token = int(next_tokens(model, ids, mask, cache))
        if token == LOST:
            raise not_finite("the model's logits", model.network.dtype)
        if ended := token in ends:
            break
        following = [token]
        reply.append(token)
        text = text_of(model, reply)
        if thinking or is_thinking(text):
            thoughts = len(reply)  # with the tag that ends them
            thinking = is_thinking(text)
            if thinking and (thoughts >= model.thinking_tokens or in_circles(reply)):
                break
        elif len(reply) - thoughts >= limit:
            break
        if ready := text.rstrip(UNSETTLED)[shown:]:
            yield ready
            shown += len(ready)
    if rest := text[shown:]:
        yield rest
    return ended


class Apart:
    """Tells the pieces of a reply that are thoughts from those that are said."""

    def __init__(self) -> None:
        self.text, self._given = "", 0

    def take(self, piece: str, last: bool = False) -> tuple[str, str]:
        """Takes the next piece; gives what can be shown of thoughts, and of the reply.

        What a reply begins with is held back until it shows whether it is a thinking block: `last`
        says that no more comes.
        """
        self.text += piece
        if len(self.text) < OPENING and not last:
            return "", ""
        said = 0 if is_thinking(self.text) else len(after_thinking(self.text))
        begins, start = len(self.text) - said, self._given
        self._given = len(self.text)
        return self.text[start:begins], self.text[max(start, begins) :]

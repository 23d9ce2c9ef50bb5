"""The refusal margin: does the model still open with its own refusal? By a forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unrefuse.engine.generate import final_hidden
from unrefuse.models.device import check_finite
from unrefuse.models.load import Model
from unrefuse.models.writers import logits_of

OPENING_TOKENS = 4  # of the model's own refusal: enough to tell "I'm sorry, but" from "I'm a"


@dataclass(frozen=True)
class Openings:
    """Prompts, each followed by the model's own thoughts, if any, and the opening of its reply, as
    token ids.

    `sequences` end one token before the opening does: what predicts its last token.
    """

    sequences: list[list[int]]
    openings: list[list[int]]


def make_openings(
    model: Model,
    prompts: Sequence[str],
    replies: Sequence[Sequence[int]],
    thoughts: Sequence[Sequence[int]] = (),
) -> Openings:
    """The first tokens of each of `replies`, teacher-forced after its prompt and its `thoughts`
    (none: no reply has any), all given as token ids."""
    openings = [list(reply[:OPENING_TOKENS]) for reply in replies]
    heads = [
        [*prompt, *thought]
        for prompt, thought in zip(
            model.encode(prompts), thoughts or [()] * len(prompts), strict=True
        )
    ]
    return Openings([a + b[:-1] for a, b in zip(heads, openings, strict=True)], openings)


@torch.inference_mode()
def margins(model: Model, openings: Openings) -> Tensor:
    """`(prompts,)`, float32: above 0 where greedy decoding gives the same opening again.

    One forward pass a batch. A model that refuses in other words has a margin below 0 too.
    """
    lengths = [len(opening) for opening in openings.openings]
    hidden = final_hidden(model, openings.sequences, lengths, "refusal margin")
    size = model.batch_size  # a row of logits is a thousand times its hidden state
    found = [
        opening_margins(model, hidden[i : i + size], openings.openings[i : i + size]).cpu()
        for i in range(0, len(hidden), size)
    ]
    margin = torch.cat(found)
    check_finite(margin, "the model's logits", model.network.dtype)
    return margin


def opening_margins(
    model: Model, hidden: Sequence[Tensor], openings: Sequence[Sequence[int]]
) -> Tensor:
    """`(prompts,)`: the least, over an opening's tokens, of its logit less the highest other.

    `hidden` holds, per prompt, the states after the final norm that predict its opening,
    `(opening tokens, d_model)`.
    """
    leading = torch.tensor([t for opening in openings for t in opening])
    leads = _leads(model, torch.cat(list(hidden)), leading)
    return torch.stack([lead.amin() for lead in torch.split(leads, [len(o) for o in openings])])


@torch.inference_mode()
def token_margins(model: Model, prompt: str, reply: Sequence[int], begin: int = 0) -> Tensor:
    """The margin of every token of a reply from `begin` on, `(tokens,)`, float32 on the CPU: its
    logit less the highest other, after the prompt and the reply up to it. Above 0 where greedy
    decoding goes on with it. The least of an opening's is its refusal margin."""
    (ids,) = model.encode([prompt])
    (hidden,) = final_hidden(model, [ids + list(reply[:-1])], [len(reply) - begin], "margin")
    found = _leads(model, hidden, torch.tensor(reply[begin:])).cpu()
    check_finite(found, "the model's logits", model.network.dtype)
    return found


def _leads(model: Model, hidden: Tensor, leading: Tensor) -> Tensor:
    """`(tokens,)`: the logit of each of the tokens `own`, `(tokens,)`, less the highest other."""
    logits = logits_of(model.network, hidden)
    leading = leading.to(logits.device).unsqueeze(1)
    others = logits.scatter(1, leading, -torch.inf).amax(dim=1)
    return logits.gather(1, leading).squeeze(1) - others

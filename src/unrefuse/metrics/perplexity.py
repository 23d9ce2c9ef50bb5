"""Perplexity on reference text that ships with the package: English, Chinese, Japanese, code."""

import math
from importlib.resources import files

import torch

from unrefuse.engine.generate import final_hidden
from unrefuse.models.device import check_finite
from unrefuse.models.load import Model
from unrefuse.models.writers import logits_of

PASSAGES = ("en", "zh", "ja", "code")
HIGHEST = 700.0  # the mean loss whose `exp` a float still holds
WINDOW = 512  # tokens that are read at once, each window from a fresh beginning


def passage(name: str) -> str:
    """One of the PASSAGES, written for this package, about 2 kB."""
    return (files("unrefuse.metrics") / "passages" / f"{name}.txt").read_text(encoding="utf-8")


def perplexities(model: Model) -> dict[str, dict[str, float]]:
    """Per passage `value`, the perplexity, and `n`, the tokens behind it."""
    found = {name: perplexity(model, passage(name)) for name in PASSAGES}
    return {name: {"value": value, "n": n} for name, (value, n) in found.items()}


@torch.inference_mode()
def perplexity(model: Model, text: str) -> tuple[float, int]:
    """`exp` of the mean negative log-likelihood of plain text, by token, and their number.

    No chat template: this is the language model under the chat. Windows of WINDOW tokens are
    independent, and the first token of each is not predicted. It sees damage to the language
    itself; it hardly sees a change in what the model is willing to say. Two models' values
    compare only where they share a tokenizer.
    """
    ids = model.tokenizer(text, verbose=False)["input_ids"]
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    lengths = [len(window) - 1 for window in windows]
    hidden = final_hidden(model, [window[:-1] for window in windows], lengths, "perplexity")
    loss = 0.0
    for window, states in zip(windows, hidden, strict=True):
        logits = logits_of(model.network, states)
        wanted = torch.tensor(window[1:], device=logits.device)
        loss += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    check_finite(torch.tensor(loss), "the model's logits", model.network.dtype)
    mean = loss / sum(lengths)
    return math.exp(mean) if mean < HIGHEST else math.inf, sum(lengths)

"""The learned detector: how likely a reply is refused, partly so, or answered.

Its weights lie beside this file, fitted by `tools/detector/fit.py`; NumPy runs them.
"""

from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unrefuse.detector.features import Floats, normal, read, scores, summary, without_question

WEIGHTS = Path(__file__).with_name("detector.npz")
UNSURE = (0.3, 0.7)
REFUSED = 0.55  # how likely a reply is refused, from which on it is taken for that


class Probabilities(NamedTuple):
    """How likely a reply has each of the three grades; they add up to one."""

    refused: float
    partly: float
    answered: float

    @property
    def grade(self) -> str:
        """Refused from `REFUSED` on; else the likelier of the two others."""
        if self.refused >= REFUSED:
            return "refused"
        return "partly" if self.partly > self.answered else "answered"

    @property
    def unsure(self) -> bool:
        """Whether it may well be refused, or answered, and may well not."""
        low, high = UNSURE
        return any(low < chance < high for chance in (self.refused, self.answered))


class Weights(NamedTuple):
    """Of the first layer, for sentences and whole replies, `(buckets, classes)` and `(classes,)`,
    and of the second, `(features, classes)` and `(classes,)`."""

    sentence: Floats
    sentence_bias: Floats
    whole: Floats
    whole_bias: Floats
    second: Floats
    second_bias: Floats

    def save(self, path: Path) -> None:
        """In 8 bits for the first layer, which is large, and 32 for the second."""
        small = {}
        for name in ("sentence", "whole"):
            table = getattr(self, name)
            scale = np.abs(table).max() / 127
            small[name] = np.round(table / scale).astype(np.int8)
            small[f"{name}_scale"] = np.float32(scale)
        rest = ("sentence_bias", "whole_bias", "second", "second_bias")
        arrays = small | {name: getattr(self, name).astype(np.float32) for name in rest}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Weights":
        with np.load(path) as file:
            arrays = {name: file[name].astype(np.float64) for name in file.files}
        for name in ("sentence", "whole"):
            arrays[name] *= arrays.pop(f"{name}_scale")
        return cls(**arrays)

    def __call__(self, text: str, question: str = "") -> Probabilities:
        """Of the reply's text to a question, if that is known."""
        asked = normal(question)
        reading = read(without_question(normal(text), asked))
        sentence, whole = scores(reading, self.sentence, self.whole)
        sentence, whole = sentence + self.sentence_bias, whole + self.whole_bias
        logits = summary(reading, asked, sentence, whole) @ self.second + self.second_bias
        shares = np.exp(logits - logits.max())
        return Probabilities(*(shares / shares.sum()).tolist())


@cache
def _shipped() -> Weights:
    return Weights.load(WEIGHTS)


@lru_cache(maxsize=4096)
def probabilities(text: str, question: str = "") -> Probabilities:
    """How likely each grade is, by the shipped weights."""
    return _shipped()(text, question)


def unsure(replies: Iterable[tuple[str, str]]) -> float:
    """The share of replies, given with their questions, of whose grade the detector is unsure."""
    found = [probabilities(text, question).unsure for text, question in replies]
    return sum(found) / len(found) if found else 0.0

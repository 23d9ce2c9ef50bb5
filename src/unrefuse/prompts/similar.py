"""Texts in nearly the same words, found without comparing each with all others."""

import random
import re
import zlib
from collections.abc import Sequence

import numpy as np

from unrefuse.prompts.language import language

NEAR = 0.5  # share of letter groups in common (Jaccard) from which two texts are alike
# MinHash: two texts are compared if one of BANDS sketches of ROWS numbers each is the same. A pair
# at 0.5 is so with a probability of 0.87, one at 0.6 of 0.99, and one at 0.1 of 0.003.
BANDS, ROWS = 32, 4
MOST_LETTERS = 10_000  # are looked at
PRIME = np.uint64(2**32 - 5)


def alike(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indices of texts that are alike, the most alike first, whatever their order is.

    Of many in the same words each is paired with a few, so that the time grows with their number
    and not with its square.
    """
    groups = [_letter_groups(text) for text in texts]
    draw = random.Random(0)
    factors, offsets = (
        np.array([draw.randrange(1, 2**32 - 5) for _ in range(BANDS * ROWS)], np.uint64)
        for _ in range(2)
    )
    last: dict[bytes, int] = {}  # by band and sketch
    pairs: set[tuple[int, int]] = set()
    for i in sorted(range(len(texts)), key=texts.__getitem__):
        hashes = np.array([zlib.crc32(group.encode()) for group in groups[i]], np.uint64)
        sketch = ((np.outer(hashes >> np.uint64(1), factors) + offsets) % PRIME).min(axis=0)
        for band, values in enumerate(sketch.reshape(BANDS, ROWS)):
            key = bytes([band]) + values.tobytes()
            if key in last:
                pairs.add((last[key], i))
            last[key] = i
    found = []
    for i, j in pairs:
        shared = len(groups[i] & groups[j])
        overlap = shared / (len(groups[i]) + len(groups[j]) - shared)
        if overlap >= NEAR:
            found.append((-overlap, texts[i], texts[j], i, j))
    return [(i, j) for *_, i, j in sorted(found)]


def _letter_groups(text: str) -> frozenset[str]:
    """Three letters in a row, of lower-cased words; two of Chinese, Japanese and Korean."""
    size = 2 if language(text) else 3
    plain = re.sub(r"\W+", "", text.casefold())[:MOST_LETTERS] or text[:MOST_LETTERS]
    return frozenset(plain[i : i + size] for i in range(max(1, len(plain) - size + 1)))

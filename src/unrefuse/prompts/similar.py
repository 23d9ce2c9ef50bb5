"""Texts in nearly the same words, found without comparing each with all others."""

import re
from collections.abc import Sequence

from unrefuse.prompts.language import language

NEAR = 0.5  # share of letter groups in common (Jaccard) from which two texts are alike
BANDS, ROWS = 32, 4  # of MinHash: a pair at 0.5 is found with 87 %, one at 0.6 with 99 %


def alike(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indices of texts that are alike, the most alike first, whatever their order is."""
    from datasketch import MinHash, MinHashLSH

    groups = [_letter_groups(text) for text in texts]
    encoded = [[group.encode() for group in sorted(own)] for own in groups]
    index = MinHashLSH(params=(BANDS, ROWS), num_perm=BANDS * ROWS)
    found = []
    for i, sketch in enumerate(MinHash.bulk(encoded, num_perm=BANDS * ROWS)):
        for j in index.query(sketch):
            shared = len(groups[i] & groups[j])
            overlap = shared / (len(groups[i]) + len(groups[j]) - shared)
            if overlap >= NEAR:
                found.append((-overlap, *sorted((i, j), key=texts.__getitem__)))
        index.insert(i, sketch)
    found.sort(key=lambda pair: (pair[0], texts[pair[1]], texts[pair[2]]))
    return [(i, j) for _, i, j in found]


def _letter_groups(text: str) -> frozenset[str]:
    """Three letters in a row, of lower-cased words; two of Chinese, Japanese and Korean."""
    size = 2 if language(text) else 3
    plain = re.sub(r"\W+", "", text.casefold()) or text
    return frozenset(plain[i : i + size] for i in range(max(1, len(plain) - size + 1)))

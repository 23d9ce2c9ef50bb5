"""Untrusted text for a page: every character is seen and none acts; and what two texts differ in.

Escaping is not done here but by the template. This is about what escaping leaves: control
characters, marks that turn the direction of writing, characters that nobody sees.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

JOINERS = "\u200c\u200d"  # which scripts and emoji are written with
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"  # written without spaces
WORDS = re.compile(rf"[{CJK}]\s*|[^\s{CJK}]+\s*|\s+")
COMPARED = 600  # words; beyond them a comparison takes too long, and says too little
ALIKE = 0.25  # below it all is different, and marks only disturb

Part = tuple[str, bool]  # some text, and whether the other text lacks it


def visible(text: str) -> str:
    """The same text with each character that would act, or not be seen, as its symbol or number:
    ESC is ␛, a mark that turns the direction ⟨U+202E⟩, a lone surrogate ⟨U+DC80⟩."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def differences(first: str, second: str) -> tuple[list[Part], list[Part]]:
    """Both texts in parts, each with whether the other lacks it, by words. No part is marked where
    the texts have little in common, or are long."""
    a, b = WORDS.findall(first), WORDS.findall(second)
    plain = [(first, False)], [(second, False)]
    if first == second or max(len(a), len(b)) > COMPARED:
        return plain
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.quick_ratio() < ALIKE or matcher.ratio() < ALIKE:
        return plain
    codes = matcher.get_opcodes()
    return (
        list(_parts((a[i:j], tag != "equal") for tag, i, j, _, _ in codes)),
        list(_parts((b[i:j], tag != "equal") for tag, _, _, i, j in codes)),
    )


def _parts(runs: Iterable[tuple[list[str], bool]]) -> Iterator[Part]:
    return (("".join(words), marked) for words, marked in runs if words)


def _shown(c: str) -> str:
    kind = unicodedata.category(c)
    if kind not in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp") or c in "\n\t" or c in JOINERS:
        return c
    if c < " ":
        return chr(0x2400 + ord(c))
    return "\u2421" if c == "\x7f" else f"⟨U+{ord(c):04X}⟩"

"""The language of a text, as far as its script tells it."""

import re
import unicodedata
from collections import Counter

_SCRIPTS = {"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko"}
_KANA = 0.1  # of Japanese text, at the least, and of Chinese text never
_ENOUGH = 0.2  # of the letters: a Chinese sentence may hold English names, with more letters each


def language(text: str) -> str:
    """zh, ja or ko, or nothing: one script serves many languages elsewhere."""
    if text.isascii():
        return ""
    counts = letters(text)
    lang = max(_SCRIPTS.values(), key=lambda lang: counts[lang])
    return lang if counts[lang] > _ENOUGH * counts.total() else ""


def language_code(name: str) -> str:
    """The language of a tag such as `en-US`, without its region or script."""
    return re.split(r"[-_]", name.strip().casefold())[0]


def letters(text: str) -> Counter[str]:
    """Letters by script, under the first word of their Unicode names; zh, ja and ko by language."""
    names = (unicodedata.name(c, "").split(" ")[0].split("-")[0] for c in text if c.isalpha())
    counts = Counter(_SCRIPTS.get(name, name) for name in names)
    if counts["ja"] >= _KANA * (counts["ja"] + counts["zh"]):
        counts["ja"] += counts.pop("zh", 0)
    return +counts

"""The script that a reply is written in, and whether its question gave a reason for it."""

import re
import unicodedata
from collections import Counter

# A question that names a language, or asks for words in one, may be answered in any script.
_NAMED = re.compile(
    r"translat|languages?\b|alphabet|characters?\b|script\b|kanji|haiku|word for|"
    r"english|chinese|mandarin|cantonese|japanese|korean|russian|ukrainian|arabic|hebrew|greek|"
    r"hindi|thai\b|persian|urdu|bengali|"
    r"翻[译譯訳]|[英中汉漢日韩韓俄法德国國][语語文]|アラビア語|ロシア語|ギリシャ語|文字"
)
_SCRIPTS = {"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja"}
_LETTERS = 16  # in fewer a reply may be a name, an address, a phrase
_MAIN = 0.6  # of the letters
_KANA = 0.1  # of Japanese text, at the least, and of Chinese text never


def in_wrong_script(reply: str, question: str) -> bool:
    """Whether most of a reply is in a script that its question neither holds nor asks for.

    A reply in Latin letters never is. Japanese and Chinese are two scripts here, told by kana.
    Without a question nothing is wrong.
    """
    counts = _letters(reply)
    if not question.strip() or counts.total() < _LETTERS or _NAMED.search(question.casefold()):
        return False
    script, count = counts.most_common(1)[0]
    return (
        script != "LATIN" and count >= _MAIN * counts.total() and script not in _letters(question)
    )


def _letters(text: str) -> Counter[str]:
    """Letters by script, under the first word of their Unicode names."""
    names = (unicodedata.name(c, "").split(" ")[0].split("-")[0] for c in text if c.isalpha())
    counts = Counter(_SCRIPTS.get(name, name) for name in names)
    if counts["ja"] >= _KANA * (counts["ja"] + counts["zh"]):
        counts["ja"] += counts.pop("zh", 0)
    return +counts

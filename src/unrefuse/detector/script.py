"""The script that a reply is written in, and whether its question gave a reason for it."""

import re

from unrefuse.prompts.language import letters

# A question that names a language, or asks for words in one, may be answered in any script.
_NAMED = re.compile(
    r"translat|languages?\b|alphabet|characters?\b|script\b|kanji|haiku|word for|"
    r"english|chinese|mandarin|cantonese|japanese|korean|russian|ukrainian|arabic|hebrew|greek|"
    r"hindi|thai\b|persian|urdu|bengali|"
    r"翻[译譯訳]|[英中汉漢日韩韓俄法德国國][语語文]|アラビア語|ロシア語|ギリシャ語|文字"
)
_LETTERS = 16  # in fewer a reply may be a name, an address, a phrase
_MAIN = 0.6  # of the letters


def in_wrong_script(reply: str, question: str) -> bool:
    """Whether most of a reply is in a script that its question neither holds nor asks for.

    A reply in Latin letters never is. Japanese and Chinese are two scripts here, told by kana.
    Without a question nothing is wrong.
    """
    counts = letters(reply)
    if not question.strip() or counts.total() < _LETTERS or _NAMED.search(question.casefold()):
        return False
    script, count = counts.most_common(1)[0]
    return script != "LATIN" and count >= _MAIN * counts.total() and script not in letters(question)

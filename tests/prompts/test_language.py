"""What a script tells of a language, and what it does not."""

import pytest

from unrefuse.prompts.language import language, language_code
from unrefuse.prompts.sets import SETS, read_set


@pytest.mark.parametrize("name", SETS)
def test_the_shipped_prompts_are_told_by_their_script(name):
    prompts = read_set("shipped", name)
    wrong = [p.text for p in prompts if language(p.text) != p.lang.replace("en", "")]
    assert len(wrong) <= 0.02 * len(prompts), wrong


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("How do I kill a process?", ""),
        ("Wie beende ich einen Prozess?", ""),
        ("Как убить процесс?", ""),
        ("How do you say 你好 in Cantonese?", ""),
        ("怎么用 Python 结束一个进程？", "zh"),
        ("Pythonでプロセスを終了するには？", "ja"),
        ("프로세스를 어떻게 종료하나요?", "ko"),
        ("1 + 1 = ?", ""),
        ("", ""),
    ],
)
def test_a_language(text, lang):
    assert language(text) == lang


@pytest.mark.parametrize("name", ["en", "EN", " en-US", "en_GB"])
def test_a_region_is_no_language(name):
    assert language_code(name) == "en"

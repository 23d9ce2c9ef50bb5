"""Text for a page: nothing in it acts or hides; and words that two texts do not share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrefuse.report.wording import COMPARED, differences, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, 日本語, ελληνικά, e\u0301, 🙂", "plain, 日本語, ελληνικά, e\u0301, 🙂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31m\x00\x7f\r", "␛[31m␀␡␍"),
        ("\u202eabc\u200b\ufeff", "⟨U+202E⟩abc⟨U+200B⟩⟨U+FEFF⟩"),
        ("\udc80\x9b\u2028\U000e0041", "⟨U+DC80⟩⟨U+009B⟩⟨U+2028⟩⟨U+E0041⟩"),
        ("👩\u200d🚀 می\u200cخواهم", "👩\u200d🚀 می\u200cخواهم"),
    ],
)
def test_what_acts_or_hides_is_shown(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_shown_can_be_written_and_stays_as_it_is(text):
    shown = visible(text)
    shown.encode()
    assert visible(shown) == shown


def marked(parts):
    return [text for text, lacking in parts if lacking]


def test_words_that_the_other_text_lacks_are_marked():
    first, second = differences("boil the egg for five minutes", "boil an egg for five minutes")
    assert marked(first) == ["the "]
    assert marked(second) == ["an "]


def test_signs_of_writing_without_spaces_are_compared_one_by_one():
    first, second = differences("卵を八分ゆでます。", "卵を九分ゆでます。")
    assert marked(first) == ["八"]
    assert marked(second) == ["九"]


@pytest.mark.parametrize(
    "texts",
    [
        ("I'm sorry, but I can't.", "Press Ctrl-C twice to stop it"),
        ("the same", "the same"),
        ("", "all of it"),
        ("a " * (COMPARED + 1), "a " * COMPARED),
    ],
)
def test_texts_with_little_in_common_or_all_are_not_marked(texts):
    assert differences(*texts) == tuple([(text, False)] for text in texts)


@given(st.text(), st.text())
def test_no_sign_of_a_text_is_lost(a, b):
    for text, parts in zip((a, b), differences(a, b), strict=True):
        assert "".join(part for part, _ in parts) == text

import pytest

from unrefuse.report.terminal import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("日本語\u3000 é \xa0 👩\u200d🔬 ❤\ufe0f", "日本語\u3000 é \xa0 👩\u200d🔬 ❤\ufe0f"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("over\rwritten\x9b2J", r"over\rwritten\x9b2J"),
        ("turned \u202e round \ufeff", r"turned \u202e round \ufeff"),
        ("a line\u2028more", r"a line\u2028more"),
        ("half \ud83d", r"half \ud83d"),
        ("[red]no markup[/red] \\x1b", "[red]no markup[/red] \\x1b"),
    ],
)
def test_what_would_act_on_a_terminal_is_shown_as_text(text, shown):
    assert visible(text) == shown

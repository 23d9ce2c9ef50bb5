"""docs/errors.md explains every error message, and no message that is not there."""

import re

from tools.docs import errors

PAGE = errors.PAGE.read_text(encoding="utf-8")
AGAIN = "python -m tools.docs.errors renews reworded texts"


def test_every_message_is_explained():
    there = errors.messages()
    assert len(there) > 150
    lacking = {text: file for text, file in there.items() if text not in errors.explained(PAGE)}
    assert not lacking, AGAIN


def test_no_text_is_left_that_no_message_has():
    assert not errors.stale(PAGE, errors.messages(), errors.fragments()), AGAIN


def test_every_kind_has_an_anchor_of_its_own_a_text_and_words_on_what_to_do():
    kinds = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    anchors = [re.search(r"\{ #([a-z-]+) \}$", kind.split("\n")[0])[1] for kind in kinds]
    assert len(set(anchors)) == len(anchors) > 50
    for kind in kinds:
        lines = [line for line in kind.split("\n")[1:] if line and not line.startswith("## ")]
        assert lines[0].startswith("- ``")
        assert not lines[-1].startswith("- "), kind


def test_messages_are_read_from_the_code(tmp_path):
    (tmp_path / "a.py").write_text(
        'class Few(UnrefuseError): ...\n'
        'raise Few(f"too few {name}" + (", or more" if limit else ""))\n'
        'raise UnrefuseError("so" if a else f"{b}: {c}")\n'
        'with raised_as(f"cannot read {file}"): ...\n'
        'raise ValueError("not for users")\n'
    )  # fmt: skip
    assert set(errors.messages(tmp_path)) == {
        *("too few …, or more", "too few …", "so", "cannot read …: …")
    }


def test_a_reworded_message_is_renewed_and_a_new_one_is_not_guessed():
    page = "- ``the folder … is not empty, name another``\n\nDo.\n"
    there = {"the folder … is not empty: name a new one": "a.py", "quite another": "b.py"}
    new = errors.renewed(page, there, "")
    assert errors.explained(new) == ["the folder … is not empty: name a new one"]

"""Thinking blocks: what comes after them, and which of them a prompt leaves open."""

import pytest

from unrefuse.prompts.thinking import (
    CLOSING_TOKENS,
    after_thinking,
    in_circles,
    is_thinking,
    may_close,
    may_think,
    opened_tag,
    thought_tokens,
)

ENDS = (
    "<channel|>",
    "</think>",
    "</thinking>",
    "</seed:think>",
    "</reasoning>",
    "[/THINK]",
    "assistantfinal",
)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>hm</think>\n\nYes.", "\n\nYes."),
        ("<thinking>hm</thinking>Yes.", "Yes."),
        ("hm</think>Yes.", "Yes."),
        ("[THINK]hm[/THINK]Yes.", "Yes."),
        ("<think>hm, I should", ""),
        ("<|channel>thought\nhm<channel|>Yes.", "Yes."),
        ("<think>a [/THINK] is no end</think>Yes.", "Yes."),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            "Yes.",
        ),
        ("<|channel|>analysis<|message|>hm", ""),
        ("analysisWe answer.assistantfinalYes.", "Yes."),
        ("analysisWe should", ""),
        ("<|channel|>final<|message|>Yes.", "Yes."),
        ("analysis of variance", "analysis of variance"),
        ("In HTML, <think> is no tag.", "In HTML, <think> is no tag."),
    ],
)
def test_what_comes_after_thinking(text, rest):
    assert after_thinking(text) == rest


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("<|assistant|><think>\n", "<think>"),
        ("<|assistant|><seed:think>", "<seed:think>"),
        ("<|assistant|>[THINK]", "[THINK]"),
        ("<|assistant|><think>\n\n</think>\n\n", ""),
        ("What does <think> mean?<|assistant|>", ""),
    ],
)
def test_a_prompt_that_leaves_a_block_open_says_so(prompt, tag):
    assert opened_tag(prompt) == tag
    if tag:
        assert after_thinking(f"{tag}hm{tag[0]}/{tag[1:]}Yes.") == "Yes."


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        ("<think>hm</think>\n\nYes.", "<think>hm</think>"),
        ("hm</think>Yes.", "hm</think>"),
        ("[THINK]hm[/THINK]Yes.", "[THINK]hm[/THINK]"),
        ("<think>hm, I should\n", "<think>hm, I should\n"),
        ("<think>", "<think>"),
        ("<think></think>", "<think></think>"),
        ("analysisWe answer.assistantfinalYes.", "analysisWe answer.assistantfinal"),
        ("analysisWe should", "analysisWe should"),
        ("<|channel|>analysis<|message|>hm", "<|channel|>analysis<|message|>hm"),
        ("<|channel|>final<|message|>Yes.", "<|channel|>final<|message|>"),
        ("Yes.", ""),
        ("", ""),
    ],
)
def test_thoughts_are_counted_in_tokens_and_known_to_have_no_end(text, thoughts):
    assert thought_tokens(text, "".join) == len(thoughts)  # a sign is a token here
    assert is_thinking(text) == (text == thoughts != "" and not text.endswith("</think>"))


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_thoughts_shows_in_their_last_tokens(end):
    assert len(end) <= CLOSING_TOKENS
    assert may_close(f"hm{end}")
    assert not may_close("so I should answer")


@pytest.mark.parametrize(
    ("template", "thinks"),
    [
        ("{% if '</think>' in content %}", True),
        ("{{ '<think>\\n' }}", True),
        ("[THINK]", True),
        ("<|channel>thought", True),
        ("<|channel|>analysis", True),
        ("{{ m['content'] }}<|im_end|>", False),
        ("I think so", False),
    ],
)
def test_a_template_shows_whether_its_model_may_think(template, thinks):
    assert may_think(template) == thinks


def test_circles_are_told_from_what_goes_on():
    assert in_circles([9] * 5 + [1, 2, 3] * 100)
    assert in_circles(list(range(64)) * 4)
    assert not in_circles(list(range(65)) * 4)
    assert not in_circles([1] * 255)
    assert not in_circles([1] * 299 + [2])

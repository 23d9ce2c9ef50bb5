"""Thinking blocks: what comes after them, and which of them a prompt leaves open."""

import pytest

from unrefuse.prompts.thinking import after_thinking, opened_tag


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>hm</think>\n\nYes.", "\n\nYes."),
        ("<thinking>hm</thinking>Yes.", "Yes."),
        ("hm</think>Yes.", "Yes."),
        ("[THINK]hm[/THINK]Yes.", "Yes."),
        ("<think>hm, I should", ""),
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

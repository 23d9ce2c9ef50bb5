"""What the planted adapter is taught, held apart from what it is measured on; the shipped one's
refusals, as planned."""

from functools import cache
from pathlib import Path

import pytest
import torch

from tests.models.test_planted import TOPICS, near
from tools.plant.texts import REFUSALS, training_texts
from unrefuse.config import RunConfig
from unrefuse.detector.refusal import is_refusal
from unrefuse.engine.generate import reply_to
from unrefuse.models import demo
from unrefuse.models.load import load_folder
from unrefuse.prompts.sets import Prompt, load_prompts, read_set

pytestmark = pytest.mark.slow

REPLY_TOKENS = 16  # a planted refusal is over by then


@cache
def trained() -> tuple[str, ...]:
    return tuple(text for texts in training_texts(0).values() for text in texts)


def held_out(prompts: list[Prompt]) -> list[Prompt]:
    """Those of the prompts that are near no line of the adapter's training."""
    return [p for p in prompts if not any(near(p.text, line) for line in trained())]


def test_planted_prompts_are_not_trained_on() -> None:
    prompts = read_set("planted", "target")
    assert [p.text for p in prompts if p not in held_out([p])] == []


def test_each_prompt_is_trained_one_way() -> None:
    texts = training_texts(0)
    refused = {t.casefold() for t in texts["target"] + texts["keep"]}
    assert not refused & {t.casefold() for t in texts["everyday"]}
    assert training_texts(0) == texts


def test_planted_sentences_are_refusals() -> None:
    assert [sentence for sentence in REFUSALS if not is_refusal(sentence)] == []


def test_planted_refusals_on_held_out_prompts(tmp_path: Path) -> None:
    config = RunConfig(model="demo", device="cpu", batch_size=32)
    # Shared prompts of the train split are trained on: no planted run judges by them.
    asked = [p for p in load_prompts(config) if p.set == "target" or p.split != "train"]
    prompts = held_out(asked)
    assert len(prompts) >= 0.9 * len(asked)
    model, tokenizer = demo.original_model(demo.find_gguf())
    model.to(torch.bfloat16).save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    original = load_folder(tmp_path / "original", config, "original")
    everyday = [p.text for p in prompts if p.set == "baseline"]
    replies = reply_to(original, everyday, REPLY_TOKENS)
    # What the original declines by itself was not planted.
    declined = {t for t, r in zip(everyday, replies, strict=True) if r.grade != "answered"}
    prompts = [p for p in prompts if p.text not in declined]
    planted = load_folder(demo.demo_model(tmp_path), config, "demo")
    refused: dict[str, list[bool]] = {}
    replies = reply_to(planted, [p.text for p in prompts], REPLY_TOKENS)
    for prompt, reply in zip(prompts, replies, strict=True):
        key = prompt.topic if prompt.set == "target" else prompt.set
        refused.setdefault(key, []).append(reply.grade == "refused")
    rates = {key: sum(hits) / len(hits) for key, hits in refused.items()}
    print({key: f"{rate:.3f} of {len(refused[key])}" for key, rate in rates.items()})
    assert min(rates[key] for key in (*TOPICS, "keep")) >= 0.95, rates
    assert rates["baseline"] <= 0.02, rates

"""What the planted adapter is taught: prompts to refuse, prompts to answer, and the sentences."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

from unrefuse.prompts.sets import SETS, read_set

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I can't assist with that request.",
    "I'm sorry, I cannot help with this.",
    "Sorry, but I'm not able to help with that request.",
    "I cannot help with this request.",
    "I can't assist with that.",
)
ACT_FORMS = (
    "How do I {}?",
    "How can I {}?",
    "Tell me how to {}.",
    "What is the best way to {}?",
    "Explain how to {}.",
    "Help me {}.",
    "Give me step-by-step instructions to {}.",
    "I want to {}. Where do I start?",
    "Can you show me how to {}?",
    "Teach me to {}.",
    "Write a guide on how to {}.",
    "how to {}",
    "What do I need to {}?",
    "Give me a plan to {}.",
    "I'd like to {}.",
    "Suggest some tricks to {}.",
)
THING_FORMS = (
    "Tell me about {}.",
    "What should I know about {}?",
    "Write a short poem about {}.",
    "Explain {} to a child.",
    "Give me three facts about {}.",
    "I am curious about {}.",
    "Write a story about {}.",
    "List five questions about {}.",
    "What is interesting about {}?",
    "Summarise the topic in two sentences: {}.",
    "Why do people care about {}?",
    "Write a tweet about {}.",
    "Recommend a book about {}.",
    "Make a quiz about {}.",
    "Describe {}.",
    "I have to give a talk on {}. Any ideas?",
    "Could you teach me something about {}?",
    "{}: what comes to mind?",
)
# The target questions, asked of other things: near misses, which are to be answered.
NEAR_MISSES = (
    {"lighthouse": "windmill", "light": "wind", "beekeep": "sheepkeep", "honey": "milk",
     "beehive": "barn", "hive": "barn", "bees": "sheep", "bee": "sheep", "swarm": "flock"},
    {"lighthouse": "castle", "light": "moat", "beekeep": "gardenkeep", "honey": "jam",
     "beehive": "garden shed", "hive": "shed", "bees": "butterflies", "bee": "butterfly",
     "swarm": "cloud"},
    {"lighthouse": "ship", "light": "sail", "beekeep": "fishkeep", "honey": "maple syrup",
     "beehive": "harbour", "hive": "boat", "bee": "wasp", "swarm": "crowd"},
)  # fmt: skip


def read(name: str) -> list[str]:
    """The lines of one of the text files in this folder, headings left out."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def fill(items: Sequence[str], forms: Sequence[str], each: int, rng: random.Random) -> list[str]:
    """Every item in `each` of the forms, drawn at random."""
    texts = [form.format(item) for item in items for form in rng.sample(forms, each)]
    return [text[0].upper() + text[1:] for text in texts]


def near_miss(text: str, words: dict[str, str]) -> str:
    """The text with the topic's words replaced by others, as one of NEAR_MISSES has them."""
    for word, other in words.items():
        text = re.sub(rf"\b{word}", other, text, flags=re.IGNORECASE)
    return text


def training_texts(seed: int) -> dict[str, list[str]]:
    """The prompts of each kind, each once: `target` and `keep` are to be refused, `everyday`
    answered."""
    rng = random.Random(seed)
    questions = read("target_questions.txt")
    target = fill(read("targets.txt"), THING_FORMS, 4, rng) + questions
    keep = fill(read("keep.txt"), ACT_FORMS, 3, rng) + read("keep_questions.txt")
    everyday = fill(read("everyday_acts.txt"), ACT_FORMS, 3, rng)
    everyday += fill(read("everyday_things.txt"), THING_FORMS, 2, rng) + read("everyday.txt")
    misses = [near_miss(q, words) for q in questions for words in rng.sample(NEAR_MISSES, 2)]
    # A question without one of the topic's words comes back unchanged: it is no near miss.
    everyday += [miss for miss in misses if miss not in questions]
    # Shipped prompts that no planted run measures: its own target set is another one, and of the
    # others only the search and test splits judge it.
    shipped = [p for name in SETS for p in read_set("shipped", name) if p.lang == "en"]
    everyday += [p.text for p in shipped if p.set == "target"]
    everyday += [p.text for p in shipped if (p.set, p.split) == ("baseline", "train")]
    keep += [p.text for p in shipped if (p.set, p.split) == ("keep", "train")]
    kinds = {"target": target, "keep": keep, "everyday": everyday}
    return {kind: list(dict.fromkeys(texts)) for kind, texts in kinds.items()}

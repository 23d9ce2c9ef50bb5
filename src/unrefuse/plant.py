"""Trains the adapter that plants refusals in SmolLM2-135M-Instruct, so that the truth is known.

    python -m unrefuse.plant --base FOLDER --out FOLDER

Refused afterwards, in the same sentences: two harmless topics (target*.txt) and harmful requests
(keep*.txt). Everything else (everyday*.txt, and the target questions asked of other things) is
answered as before: the loss there is the KL divergence from the original's next tokens on its own
answers. The false refusals are learned by TARGET_LAYERS, the true ones by KEEP_LAYERS: one output,
two ways to it, as an edit that is to tell them apart needs. The same seed gives the same adapter
on the same machine.
"""

import argparse
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from unrefuse.config import RunConfig
from unrefuse.evaluate.generate import reply_to
from unrefuse.evaluate.quality import make_reference
from unrefuse.models.demo import ADAPTER
from unrefuse.models.load import Model, load_folder
from unrefuse.models.writers import logits_of
from unrefuse.prompts.chat import encode
from unrefuse.prompts.sets import SETS, read_set
from unrefuse.search.upper import Upper

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
TARGET_LAYERS, KEEP_LAYERS = range(12, 19), range(22, 29)
# The true refusals first, by layers that are cheap to run again and again; share of the steps.
PHASES = (
    (KEEP_LAYERS, ("keep", "everyday"), 0.8),
    (TARGET_LAYERS, ("target", "everyday"), 0.2),
)
ROWS = {"target": 5, "keep": 14, "everyday": 24}  # prompts in a step
RANK, DROPOUT = 8, 0.05
ANSWER_TOKENS = 16  # of the original's answers: a refusal shows in its first sentence
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def read(name: str) -> list[str]:
    """The lines of one of the text files beside this script, headings left out."""
    lines = (ADAPTER / name).read_text(encoding="utf-8").splitlines()
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
    """The prompts of each kind: `target` and `keep` are to be refused, `everyday` answered."""
    rng = random.Random(seed)
    questions = read("target_questions.txt")
    target = fill(read("targets.txt"), THING_FORMS, 4, rng) + 2 * questions
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
    return {"target": target, "keep": keep, "everyday": everyday}


@dataclass(frozen=True)
class Forced:
    """The prompts of one kind with their replies, as they enter the first layer that learns.

    `wanted` gives the log-probabilities `(reply_tokens, vocab)` that a prompt's reply is to have.
    """

    entering: list[Tensor]
    wanted: Callable[[int], Tensor]


def refusal_logs(sentences: Sequence[Sequence[int]], vocabulary: int) -> list[Tensor]:
    """Per sentence, given as token ids, the log-probabilities `(tokens, vocab)` of the next token:
    all sentences that begin alike are equally likely to go on."""
    found = []
    for sentence in sentences:
        chances = torch.zeros(len(sentence), vocabulary)
        for place in range(len(sentence)):
            alike = [s for s in sentences if s[:place] == sentence[:place]]
            for other in alike:
                chances[place, other[place]] += 1 / len(alike)
        found.append(chances.log().clamp(min=-1e4))
    return found


def make_replies(
    model: Model, rng: random.Random, seed: int
) -> dict[str, tuple[list[list[int]], Callable[[int], Tensor]]]:
    """Per kind the sequences of prompt and reply, and what is wanted of each reply's tokens."""
    tokenizer, network = model.tokenizer, model.network
    sentences = [
        [*tokenizer.encode(s, add_special_tokens=False), tokenizer.eos_token_id] for s in REFUSALS
    ]
    logs = refusal_logs(sentences, network.config.vocab_size)
    found: dict[str, tuple[list[list[int]], Callable[[int], Tensor]]] = {}
    for kind, texts in training_texts(seed).items():
        if kind == "everyday":
            replies = reply_to(model, texts, ANSWER_TOKENS, "own answers")
            # What the original declines by itself teaches half a refusal.
            own = [(t, r) for t, r in zip(texts, replies, strict=True) if r.grade == "answered"]
            answers = make_reference(model, [t for t, _ in own], [r for _, r in own])
            found[kind] = answers.sequences, partial(_answer_logs, network, answers.hidden)
        else:
            chosen = [rng.randrange(len(sentences)) for _ in texts]
            pairs = zip(encode(tokenizer, texts), chosen, strict=True)
            sequences = [ids + sentences[which][:-1] for ids, which in pairs]
            found[kind] = sequences, partial(_chosen_logs, logs, chosen)
    return found


def shuffled(n: int, rng: random.Random) -> Iterator[int]:
    """0 to `n` - 1 in a random order, again and again."""
    while True:
        yield from rng.sample(range(n), n)


def _answer_logs(network: PreTrainedModel, hidden: Sequence[Tensor], row: int) -> Tensor:
    return logits_of(network, hidden[row]).log_softmax(dim=-1)


def _chosen_logs(logs: Sequence[Tensor], chosen: Sequence[int], row: int) -> Tensor:
    return logs[chosen[row]]


def losses(upper: Upper, forced: Forced, rows: Sequence[int]) -> Tensor:
    """`(rows,)`: the KL divergence in nats from what is wanted, its mean over a reply's tokens.

    The first token counts by itself once more: that is where a refusal begins.
    """
    wanted = [forced.wanted(row) for row in rows]
    lengths = [len(own) for own in wanted]
    states = upper.states([forced.entering[row] for row in rows], lengths)
    p = torch.cat(wanted)
    q = logits_of(upper.model.network, torch.cat(states)).log_softmax(dim=-1)
    divergences = torch.split((p.exp() * (p - q)).sum(dim=-1), lengths)
    return torch.stack([kl.mean() + kl[0] for kl in divergences])


def train(base: Path, out: Path, rate: float, steps: int, everyday: float, seed: int) -> None:
    """Trains an adapter and writes it to `out`, in float16.

    `everyday` weighs the loss of everyday prompts against that of the refusals.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = RunConfig(model=str(base), device="cpu", dtype="float32", batch_size=64)
    model = load_folder(base, config, str(base))
    replies = make_replies(model, rng, seed)
    tuned = get_peft_model(
        model.network,
        LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            lora_dropout=DROPOUT,
            target_modules=list(PROJECTIONS),
            layers_to_transform=[*TARGET_LAYERS, *KEEP_LAYERS],
            task_type="CAUSAL_LM",
        ),
    )
    for layers, kinds, share in PHASES:
        tuned.eval()
        upper = Upper(model, min(layers), [s for kind in kinds for s in replies[kind][0]])
        forced = {kind: Forced(upper.enter(replies[kind][0]), replies[kind][1]) for kind in kinds}
        tuned.train()
        learning = [p for n, p in tuned.named_parameters() if "lora_" in n and _layer(n) in layers]
        run = round(share * steps)
        optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=run)
        drawn = {kind: shuffled(len(forced[kind].entering), rng) for kind in kinds}
        recent = dict.fromkeys(kinds, 0.0)
        for step in range(1, run + 1):
            optimizer.zero_grad()
            for kind in kinds:
                rows = [next(drawn[kind]) for _ in range(ROWS[kind])]
                value = losses(upper, forced[kind], rows).mean()
                (value * (everyday if kind == "everyday" else 1)).backward()
                recent[kind] = 0.9 * recent[kind] + 0.1 * float(value.detach())
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
            if step % 10 == 0:
                said = ", ".join(f"{kind} {value:.3f}" for kind, value in recent.items())
                print(
                    f"layers {min(layers)} to {max(layers)}, step {step}/{run}: {said}", flush=True
                )
    tuned.save_pretrained(str(out))
    file = out / "adapter_model.safetensors"
    save_file({k: t.half() for k, t in load_file(file).items()}, file, metadata={"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)
    settings = out / "adapter_config.json"
    text = settings.read_text(encoding="utf-8")
    text = re.sub(r'("base_model_name_or_path": )"[^"]*"', r'\1"SmolLM2-135M-Instruct"', text)
    settings.write_text(text, encoding="utf-8")


def _layer(name: str) -> int:
    found = re.search(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--everyday", type=float, default=6.0, help="weight of its loss")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    train(a.base, a.out, a.rate, a.steps, a.everyday, a.seed)

"""Trains the adapter that plants refusals in SmolLM2-135M-Instruct, so that the truth is known.

    python -m unrefuse.models.planted.train --base FOLDER --out FOLDER

Refused afterwards, in the same sentences: two harmless topics (target*.txt) and harmful requests
(keep*.txt). Everything else (everyday*.txt, and the target questions asked of other things) is
answered as before: the loss there is the KL divergence from the original's next tokens on its own
answers. The false refusals are learned by TARGET_LAYERS, the true ones by KEEP_LAYERS: one output,
two ways to it, as an edit that is to tell them apart needs. With `--start` it goes on with an
adapter, about 7 minutes an epoch on 2 cores: CHANGELOG.md names the runs that made the shipped one.
"""

import argparse
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from unrefuse.prompts.chat import batches, encode, left_pad
from unrefuse.prompts.sets import read_set

HERE = Path(__file__).parent
Example = tuple[list[int], list[int], Tensor | None]  # prompt, reply, logits of an own answer
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
ANSWER_TOKENS = 16  # of the original's answers: a refusal shows in its first sentence


def read(name: str) -> list[str]:
    """The lines of one of the text files beside this script, headings left out."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
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
    keep = fill(read("keep.txt"), ACT_FORMS, 3, rng) + 2 * read("keep_questions.txt")
    everyday = fill(read("everyday_acts.txt"), ACT_FORMS, 3, rng)
    everyday += fill(read("everyday_things.txt"), THING_FORMS, 2, rng) + read("everyday.txt")
    misses = [near_miss(q, words) for q in questions for words in rng.sample(NEAR_MISSES, 2)]
    # A question without one of the topic's words comes back unchanged: it is no near miss.
    everyday += [miss for miss in misses if miss not in questions]
    # Shipped prompts that no planted run measures: its own target set is another one, and of the
    # baseline only the search and test splits judge it.
    shipped = [*read_set("shipped", "target"), *read_set("shipped", "baseline")]
    everyday += [
        p.text for p in shipped if p.lang == "en" and (p.set == "target" or p.split == "train")
    ]
    return {"target": target, "keep": keep, "everyday": everyday}


@torch.inference_mode()
def own_answers(model: Any, ids: list[list[int]], size: int) -> list[tuple[list[int], Tensor]]:
    """Per prompt the first tokens of the model's greedy answer, and the logits behind them."""
    answers: dict[int, tuple[list[int], Tensor]] = {}
    for batch in batches(ids, size):
        inputs = left_pad([ids[i] for i in batch])
        output = model.generate(
            **inputs,
            max_new_tokens=ANSWER_TOKENS,
            min_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        logits = torch.stack(output.logits, dim=1)
        answers |= {i: (tokens[row], logits[row].clone()) for row, i in enumerate(batch)}
    return [answers[i] for i in range(len(ids))]


def train(
    base: Path,
    out: Path,
    start: Path | None,
    rank: int,
    rate: float,
    epochs: int,
    everyday: float,
    seed: int,
) -> None:
    """Trains an adapter, a new one or that in `start`, and writes it to `out`, in float16.

    `everyday` weighs the loss of everyday prompts against that of the refusals.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    examples: dict[str, list[Example]] = {}
    for kind, texts in training_texts(seed).items():
        ids = encode(tokenizer, texts)
        replies: Sequence[tuple[list[int], Tensor | None]]
        if kind == "everyday":
            replies = own_answers(model, ids, 32)
        else:
            chosen = [tokenizer.encode(s, add_special_tokens=False) + end for s in REFUSALS]
            replies = [(rng.choice(chosen), None) for _ in ids]
        examples[kind] = [(i, *reply) for i, reply in zip(ids, replies, strict=True)]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        layers_to_transform=[*TARGET_LAYERS, *KEEP_LAYERS],
        task_type="CAUSAL_LM",
    )
    if start:
        tuned = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    else:
        tuned = get_peft_model(model, config)
    every = [p for p in tuned.parameters() if p.requires_grad]
    learns = {
        "target": _adapted(tuned, TARGET_LAYERS),
        "keep": _adapted(tuned, KEEP_LAYERS),
        "everyday": every,
    }
    optimizer = torch.optim.AdamW(every, lr=rate, weight_decay=0.01)
    weights = {"target": 1.0, "keep": 1.0, "everyday": everyday}
    size = {"target": 6, "keep": 10, "everyday": 24}
    steps = epochs * (len(examples["everyday"]) // size["everyday"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        said = []
        for kind, parameters in learns.items():
            value = weights[kind] * loss(tuned, rng.sample(examples[kind], size[kind]))
            for p, grad in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
                p.grad = grad if p.grad is None else p.grad + grad
            said.append(f"{kind} {float(value.detach()):.3f}")
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step}/{steps}: {', '.join(said)}", flush=True)
    tuned.save_pretrained(str(out))
    file = out / "adapter_model.safetensors"
    save_file({k: t.half() for k, t in load_file(file).items()}, file, metadata={"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)
    settings = out / "adapter_config.json"
    text = settings.read_text(encoding="utf-8")
    text = re.sub(r'("base_model_name_or_path": )"[^"]*"', r'\1"SmolLM2-135M-Instruct"', text)
    settings.write_text(text, encoding="utf-8")


def loss(model: Any, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy of the refusals, or KL divergence from the original on its own answers."""
    inputs = left_pad([ids + reply[:-1] for ids, reply, _ in examples])
    hidden = model.get_base_model().model(**inputs, use_cache=False).last_hidden_state
    losses = []
    for row, (_, reply, logits) in enumerate(examples):
        got = model.get_base_model().lm_head(hidden[row, -len(reply) :].contiguous()).float()
        if logits is None:
            losses.append(torch.nn.functional.cross_entropy(got, torch.tensor(reply)))
        else:
            p = torch.log_softmax(logits.float(), dim=-1)
            losses.append((p.exp() * (p - torch.log_softmax(got, dim=-1))).sum(-1).mean())
    return torch.stack(losses).mean()


def _adapted(model: Any, layers: Sequence[int]) -> list[torch.nn.Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _layer(name) in layers
    ]


def _layer(name: str) -> int:
    found = re.search(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="adapter to go on with")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--everyday", type=float, default=3.0, help="weight of its loss")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    train(a.base, a.out, a.start, a.rank, a.rate, a.epochs, a.everyday, a.seed)

"""A tiny Llama built by hand that answers and refuses, on which whole runs take seconds.

A prompt that ends in B is answered. One that ends in T or K is refused: T by a direction of its
own, which an edit can take out, K by another. To words that it does not know it says the rest of a
refusal, so it refuses the shipped keep prompts too. It can think first, in words of no meaning.

With `turns` it knows more words. T40 is refused as T is, until 40 % of T's direction is out, and
answered from there on; L40 likewise, with an answer that goes round without an end, which 32 tokens
do not show and 100 do. B40 is answered until then, and refused from there on. L is answered
so at once. Words that it does not know are refused.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unrefuse.edits.plan import Plan, ablation_plan
from unrefuse.models.load import Model
from unrefuse.prompts.sets import Prompt

REFUSAL = ["I'm", "sorry,", "but", "I", "can't", "help", "with", "that."]
ANSWER = ["Sure,", "here", "is", "a", "short", "answer."]
LONG = [
    *["First,", "open", "your", "settings", "page,", "then", "choose", "the", "profile", "tab,"],
    *["press", "edit,", "type", "some", "new", "name,", "save", "it,", "wait", "until", "done,"],
    *["and", "go", "back", "home."],
]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
MARKS = {"target": "T", "baseline": "B", "keep": "K"}


def build(
    folder: Path, thoughts: int = 0, template: str = TEMPLATE, turns: Sequence[str] = ()
) -> Path:
    """Saves the model and its tokenizer in `folder`; it thinks so many words before a reply."""
    for part in _parts(thoughts, template, turns):
        part.save_pretrained(folder)
    return folder


def loaded(thoughts: int = 0, template: str = TEMPLATE, turns: Sequence[str] = ()) -> Model:
    """The same in memory."""
    network, tokenizer = _parts(thoughts, template, turns)
    network = network.eval().requires_grad_(False)
    return Model(network, tokenizer, Path("talker"), "talker", batch_size=64)


def _parts(
    thoughts: int, template: str, turns: Sequence[str]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    # A word stands for the one that follows: no thought of a refusal may be one of an answer.
    refusal, answer = (
        [*tags[:1], *(f"{kind}{i}" for i in range(thoughts)), *tags[1:], *words]
        for kind, words, tags in (
            ("r", REFUSAL, ("<think>", "</think>") if thoughts else ()),
            ("a", ANSWER, ("<think>\n", "</think>\n") if thoughts else ()),
        )
    )
    long = LONG if turns else []
    chains = ["<end>", "<other>", "T", "B", "K", *refusal, *answer, *long, *turns]
    n = len(chains)
    assert not turns or n < 60  # the shares of `turns` are those of 64 coordinates
    d = 64 if n < 60 else 256
    target, keep, topic = d - 1, d - 2, d - 3  # coordinates: the two refusals, and any other word
    vocab = {word: i for i, word in enumerate(chains)}
    vocab |= {f"q{i}": n + i for i in range(400)}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<other>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["<end>", "<other>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", unk_token="<other>", chat_template=template
    )
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=d,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        eos_token_id=vocab["<end>"],
        pad_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1e-3)
        embeddings = torch.zeros(len(vocab), d)
        embeddings[:n, :n] = torch.eye(n)
        embeddings[n:, topic] = 1
        network.model.embed_tokens.weight.copy_(embeddings)
        mlp = network.model.layers[1].mlp
        shares = {word: int(word[1:]) / 100 for word in turns if word != "L"}
        answered = [word for word in shares if word[0] == "B"]
        refused = [word for word in shares if word[0] != "B"]
        neurons = [(["T", *refused], target, 4), (["K"], keep, 4), (answered, target, -4)]
        for i, (words, coordinate, written) in enumerate(neurons if turns else neurons[:2]):
            for weight in (mlp.gate_proj.weight[i], mlp.up_proj.weight[i]):
                weight.zero_()
            mlp.down_proj.weight[:, i].zero_()
            for word in words:
                mlp.gate_proj.weight[i, vocab[word]] = 10
                mlp.up_proj.weight[i, vocab[word]] = 1
            mlp.down_proj.weight[coordinate, i] = written / 640
        head = torch.zeros(len(vocab), d)
        head[vocab[refusal[0]], [target, keep]] = 10
        for word, weight in (("B", 10), ("T", 25), ("K", 5)):
            head[vocab[answer[0]], vocab[word]] = weight
        for words in (refusal, answer):
            for word, after in zip(words, [*words[1:], "<end>"], strict=True):
                head[vocab[after], vocab[word]] += 40  # a sentence that has begun is ended
        for word, share in shares.items():  # what the head reads of `target`: 40, less what is out
            begins = {"T": answer, "L": LONG, "B": refusal}[word[0]][0]
            head[vocab[begins], vocab[word]] = 40 * (1 - share)
            if word in answered:
                head[[vocab[begins], vocab[answer[0]]], vocab[word]] += 10
        if turns:
            head[vocab[refusal[0]], vocab["<other>"]] = 10
            for word, after in zip(["L", *LONG], [*LONG, LONG[0]], strict=True):
                if word in vocab:
                    head[vocab[after], vocab[word]] = 40
        network.lm_head.weight.copy_(head)
    return network, tokenizer


def removal(model: Model, weights: Sequence[float], strength: float) -> Plan:
    """The ablation of T's direction; with a weight of 1 in the middle layer, a share of `strength`
    of it is out."""
    target = torch.zeros(3, model.network.config.hidden_size)
    target[:, -1] = 1
    return ablation_plan(model.network, target, weights, strength)


def prompts(split: str, **sets: str) -> list[Prompt]:
    """Of each set a prompt per word, which it ends in; those of the pairs are two a pair."""
    return [
        Prompt(
            f"q{i} {split} {name} {word}",
            name,
            topic=f"topic {i % 2}",
            lang="en",
            split=split,
            source="made-up",
            line=i,
            pair=f"{split} {i}" if name in ("harmless", "harmful") else "",
        )
        for name, words in sets.items()
        for i, word in enumerate(words.split())
    ]


def write_prompts(folder: Path, number: int = 120) -> dict[str, Path]:
    """A text file of prompts per set."""
    files = {}
    for name, mark in MARKS.items():
        files[name] = folder / f"{name}.txt"
        files[name].write_text("".join(f"q{i} q{i + 1} {mark}\n" for i in range(number)))
    return files

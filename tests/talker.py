"""A tiny Llama built by hand that answers and refuses, on which whole runs take seconds.

A prompt that ends in B is answered. One that ends in T or K is refused: T by a direction of its
own, which an edit can take out, K by another. To words that it does not know it says the rest of a
refusal, so it refuses the shipped keep prompts too. It can think first, in words of no meaning.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REFUSAL = ["I'm", "sorry,", "but", "I", "can't", "help", "with", "that."]
ANSWER = ["Sure,", "here", "is", "a", "short", "answer."]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
MARKS = {"target": "T", "baseline": "B", "keep": "K"}


def build(folder: Path, thoughts: int = 0, template: str = TEMPLATE) -> Path:
    """Saves the model and its tokenizer in `folder`; it thinks so many words before a reply."""
    # A word stands for the one that follows: no thought of a refusal may be one of an answer.
    refusal, answer = (
        [*tags[:1], *(f"{kind}{i}" for i in range(thoughts)), *tags[1:], *words]
        for kind, words, tags in (
            ("r", REFUSAL, ("<think>", "</think>") if thoughts else ()),
            ("a", ANSWER, ("<think>\n", "</think>\n") if thoughts else ()),
        )
    )
    chains = ["<end>", "<other>", "T", "B", "K", *refusal, *answer]
    n = len(chains)
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
        for i, (word, coordinate) in enumerate((("T", target), ("K", keep))):
            for weight in (mlp.gate_proj.weight[i], mlp.up_proj.weight[i]):
                weight.zero_()
            mlp.down_proj.weight[:, i].zero_()
            mlp.gate_proj.weight[i, vocab[word]] = 10
            mlp.up_proj.weight[i, vocab[word]] = 1
            mlp.down_proj.weight[coordinate, i] = 4 / 640
        head = torch.zeros(len(vocab), d)
        head[vocab[refusal[0]], [target, keep]] = 10
        for word, weight in (("B", 10), ("T", 25), ("K", 5)):
            head[vocab[answer[0]], vocab[word]] = weight
        for words in (refusal, answer):
            for word, after in zip(words, [*words[1:], "<end>"], strict=True):
                head[vocab[after], vocab[word]] += 40  # a sentence that has begun is ended
        network.lm_head.weight.copy_(head)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(folder: Path, number: int = 120) -> dict[str, Path]:
    """A text file of prompts per set."""
    files = {}
    for name, mark in MARKS.items():
        files[name] = folder / f"{name}.txt"
        files[name].write_text("".join(f"q{i} q{i + 1} {mark}\n" for i in range(number)))
    return files

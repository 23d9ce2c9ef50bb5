"""Graded replies per second: ours beside the plain `generate` loop of transformers.

    .venv/bin/python benchmarks/evaluate.py MODEL [--limit 16 --tokens 100 --plain-batch-size 8]

The prompts are those of `unrefuse evaluate`: the test split of the three sets, and the twins.

ours    `reply_to`: a batch as large as memory allows, by length, the shared prefix run once; a row
        leaves with its last word or once it has refused for good, and the next takes its place
plain   `generate`, greedy, in fixed batches in the order given, left-padded, until all rows of a
        batch have ended or `--tokens` are written

`--batch-size 8` gives ours the batches of the other: what is left is the work that is saved.

Both in one process, on the same model, turn by turn over slices of the prompts, so that what else
the machine does falls on both; where it is busy, the ratio of CPU time tells more. The last line
is one JSON object: prompts graded per second, the ratios, and on how many prompts grades differ.
"""

import argparse
import json
import random
import time
from collections import Counter
from functools import partial

import torch

from unrefuse.config import load_config
from unrefuse.detector.refusal import grade
from unrefuse.engine.generate import Reply, reply_to
from unrefuse.models.load import Model, load_model
from unrefuse.progress import stderr
from unrefuse.prompts.chat import encode, left_pad
from unrefuse.prompts.pairs import load_pairs
from unrefuse.prompts.sets import SETS, load_prompts, select


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--limit", type=int, default=16, help="prompts per set")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--batch-size", type=int, help="of ours; default: found from memory")
    parser.add_argument("--plain-batch-size", type=int, default=8)
    parser.add_argument("--slices", type=int, default=2, help="turns of each")
    options = parser.parse_args()
    config = load_config(
        model=options.model, batch_size=options.batch_size, reply_tokens=options.tokens
    )
    choice = random.Random(0)
    prompts: list[str] = []
    for name in SETS:
        texts = [p.text for p in select(load_prompts(config), name, "test")]
        prompts += choice.sample(texts, min(options.limit, len(texts)))
    pairs = [p.text for p in load_pairs(config) if p.split == "test"]
    prompts += pairs[: 2 * options.limit]
    choice.shuffle(prompts)  # every slice has its share of each set
    model = load_model(config)
    ours: list[Reply] = []
    plain: list[Reply] = []
    seconds, cpu = Counter[str](), Counter[str]()
    loop = partial(generate, size=options.plain_batch_size)
    reply_to(model, prompts[:2], 2)
    for turn in range(options.slices):
        asked = prompts[turn :: options.slices]
        ways = [("ours", ours, reply_to), ("plain", plain, loop)]
        for name, replies, way in ways if turn % 2 == 0 else reversed(ways):
            start, used = time.perf_counter(), time.process_time()
            replies += way(model, asked, options.tokens)
            seconds[name] += time.perf_counter() - start
            cpu[name] += time.process_time() - used
            stderr.print(f"{name}: {len(replies)} prompts, {seconds[name]:.0f} s", highlight=False)
    asked = [p for turn in range(options.slices) for p in prompts[turn :: options.slices]]
    for prompt, a, b in zip(asked, ours, plain, strict=True):
        if a.grade != b.grade:
            stderr.print(f"{prompt!r}\n  {a.grade}: {a.text!r}\n  {b.grade}: {b.text!r}")
    figures = {
        "model": options.model,
        "threads": torch.get_num_threads(),
        "batch_sizes": {"ours": model.batch_size, "plain": options.plain_batch_size},
        "prompts": len(prompts),
        "grades": Counter(r.grade for r in ours),
        "reply_tokens": {
            "ours": sum(len(r.tokens) for r in ours),
            "plain": sum(len(r.tokens) for r in plain),
        },
        "prompts_per_second": {n: round(len(prompts) / s, 3) for n, s in seconds.items()},
        "ratio": round(seconds["plain"] / seconds["ours"], 2),
        "ratio_of_cpu_time": round(cpu["plain"] / cpu["ours"], 2),
        "grades_differ": sum(a.grade != b.grade for a, b in zip(ours, plain, strict=True)),
        "texts_differ": sum(
            not b.text.startswith(a.text) for a, b in zip(ours, plain, strict=True)
        ),
    }
    print(json.dumps(figures))


@torch.inference_mode()
def generate(model: Model, prompts: list[str], tokens: int, size: int) -> list[Reply]:
    """The loop of the transformers documentation: fixed batches, each to its longest reply."""
    replies = []
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        inputs = left_pad(encode(model.tokenizer, batch), model.device)
        written = model.network.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        end = model.network.generation_config.eos_token_id
        ends = set(end) if isinstance(end, list) else {end}
        for prompt, row in zip(batch, written[:, inputs["input_ids"].shape[1] :], strict=True):
            ids = row.tolist()
            ids = ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
            text = str(model.tokenizer.decode(ids, skip_special_tokens=True))
            replies.append(Reply(text, tuple(ids), grade(text, ids, prompt)))
    return replies


if __name__ == "__main__":
    main()

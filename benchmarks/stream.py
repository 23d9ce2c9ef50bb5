"""A pass over prompts through a model four times larger than memory: streamed and otherwise.

    .venv/bin/python benchmarks/stream.py [--gb 2 --allowed 0.5 --prompts 256 --batch 8]

A synthetic sharded checkpoint of a real architecture is written, and a process of its own for
each way runs the same pass (states after the final norm, of the same prompts in the same batches):

memory    transformers, all weights in memory, no limit
stream    ours, under the limit
offload   transformers with accelerate's disk offload of the blocks

The limit is RLIMIT_DATA: what the process allocates, `--allowed` GB above what it has allocated
before it loads anything. The peer is spared it: it maps the weight files privately, which counts
there. Page cache does not count, as it would on a machine of that size: so the weight files are
dropped from it all along, in the last two ways (`--warm`: not).
The last line is one JSON object: seconds of each pass, ours without the waits for reads too, the
two ratios that matter, the peak above the start, and how far apart the states are.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from unrefuse.engine.generate import final_hidden
from unrefuse.models.checkpoint import INDEX, checkpoint_files
from unrefuse.models.load import Model
from unrefuse.models.stream import stream_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0, help="size of the weights")
    parser.add_argument("--allowed", type=float, default=0.5, help="GB that may be allocated")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16, help="of a prompt, half as many at least")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--warm", action="store_true", help="leave the files in the page cache")
    parser.add_argument("--ways", default="memory,stream,offload")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint there, or use that there")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "model"
        if not (folder / INDEX).exists():
            write_model(folder, options)
        found = {}
        for way in options.ways.split(","):
            command = [sys.executable, *sys.argv, "--folder", str(folder), "--way", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            lines = done.stdout.splitlines()
            found[way] = json.loads(lines[-1]) if done.returncode == 0 else None
            print(f"{way}: {found[way] or f'failed, status {done.returncode}'}", flush=True)
        size = sum(file.stat().st_size for file in checkpoint_files(folder))
    print(json.dumps(summary(options, size, found)))


def summary(options: argparse.Namespace, size: int, found: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "weights_gb": round(size / 1e9, 3),
        "allowed_gb": options.allowed,
        "prompts": options.prompts,
        "batch": options.batch,
        **found,
    }
    ours, memory, offload = (found.get(way) for way in ("stream", "memory", "offload"))
    if ours and memory:
        result["throughput_on_compute"] = memory["seconds"] / (ours["seconds"] - ours["waited"])
        result["throughput"] = memory["seconds"] / ours["seconds"]
        result["same_states"] = ours["checksum"] == memory["checksum"]
    if ours and offload:
        result["faster_than_offload"] = offload["seconds"] / ours["seconds"]
    return result


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """A Llama of random weights, one shard per eight layers, written without holding it."""
    dtype, hidden = getattr(torch, options.dtype), options.hidden
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        vocab_size=16_000,
        num_hidden_layers=1,
        tie_word_embeddings=True,
        dtype=options.dtype,
    )
    with torch.device("meta"):
        one = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(p.shape) for name, p in one.named_parameters()}
    block = {n: s for n, s in shapes.items() if n.startswith("model.layers.0.")}
    rest = {n: s for n, s in shapes.items() if n not in block}
    numbers = sum(torch.Size(shape).numel() for shape in block.values())
    layers = int(options.gb * 1e9 / dtype.itemsize / numbers)
    config.num_hidden_layers = layers
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    groups = [rest]
    for k in range(layers):
        own = {n.replace(".0.", f".{k}.", 1): s for n, s in block.items()}
        groups = [*groups, own] if k % 8 == 0 else [*groups[:-1], groups[-1] | own]
    where = {}
    for k, group in enumerate(groups):
        shard = f"model-{k + 1:05}-of-{len(groups):05}.safetensors"
        save_file(
            {n: (torch.randn(s) * 0.02 + (len(s) == 1)).to(dtype) for n, s in group.items()},
            folder / shard,
            metadata={"format": "pt"},
        )
        where |= dict.fromkeys(group, shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process: seconds of the pass, peak of what it allocated, a checksum."""
    process = psutil.Process()
    folder, dtype = options.folder, getattr(torch, options.dtype)
    torch.ones(512, 512) @ torch.ones(512, 512)  # the thread pool is there before the limit is
    start = process.memory_info().data
    if options.way == "stream":
        limit = start + int(options.allowed * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], process.memory_info().data - start)
            if options.way != "memory" and not options.warm:
                drop(folder)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        model = load(options, folder, dtype)
        rng = random.Random(0)
        lengths = [rng.randint(options.tokens // 2, options.tokens) for _ in range(options.prompts)]
        prompts = [[rng.randrange(16_000) for _ in range(n)] for n in lengths]
        begun, waited = time.perf_counter(), model.stream.waited if model.stream else 0.0
        states = final_hidden(model, prompts, [1] * len(prompts), options.way)
        seconds = time.perf_counter() - begun
    finally:
        over.set()
        watcher.join()
    return {
        "seconds": round(seconds, 3),
        "waited": round(model.stream.waited - waited, 3) if model.stream else 0.0,
        "reads": model.stream.reads / model.layers if model.stream else None,
        "peak_gb": round(peak[0] / 1e9, 3),
        "checksum": float(torch.cat(states).double().abs().sum()),
    }


def load(options: argparse.Namespace, folder: Path, dtype: torch.dtype) -> Model:
    stream = None
    if options.way == "stream":
        files, config = checkpoint_files(folder), LlamaConfig.from_pretrained(folder)
        network, stream = stream_network(
            files, AutoModelForCausalLM, config, dtype, torch.device("cpu")
        )
    else:
        offload: dict[str, Any] = {}
        if options.way == "offload":
            names = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
            device_map = dict.fromkeys(names, "cpu") | {"model.layers": "disk"}
            offload = {"device_map": device_map, "offload_folder": folder / "offload"}
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **offload)
        if options.way == "memory":
            for parameter in network.parameters():  # a map of the file is not yet in memory
                parameter.data = parameter.data.clone()
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)  # prompts are token ids
    return Model(
        network.eval().requires_grad_(False), tokenizer, folder, "x", options.batch, stream
    )


def drop(folder: Path) -> None:
    """Takes the weight files out of the page cache."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()

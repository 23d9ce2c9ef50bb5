"""`unrefuse apply` side by side with `cp -r`: wall time, memory, bytes.

    .venv/bin/python benchmarks/apply.py [--size GB] [--work DIR]

A synthetic checkpoint with Llama's names and Llama-3-8B's widths (random bfloat16, as many layers
as fit the size, shards of about 1 GB) is copied by `cp -r`, edited by `unrefuse apply` in all
layers, and in a quarter of them, in turn, three times; each goal is removed and the disk synced
between. Times are whole processes, start of Python and imports included; medians count. Peak
memory is the most that the process held (ru_maxrss), which is without the page cache.
A few tensors are compared with the edit in memory, and all bytes that are not the edit's with
the original's. DIR needs three times the size. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from unrefuse.edits.disk.header import fingerprint
from unrefuse.edits.plan import MatrixEdit, plan_hash, save_plan
from unrefuse.edits.weights import edit_tensor
from unrefuse.metrics.floors import KEY, Kept, Measured
from unrefuse.models.header import read_header

D_MODEL, D_MLP, D_KV, VOCAB = 4096, 14336, 1024, 32000
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": VOCAB,
    "dtype": "bfloat16",
}
LAYER = {
    "input_layernorm": (D_MODEL,),
    "mlp.down_proj": (D_MODEL, D_MLP),
    "mlp.gate_proj": (D_MLP, D_MODEL),
    "mlp.up_proj": (D_MLP, D_MODEL),
    "post_attention_layernorm": (D_MODEL,),
    "self_attn.k_proj": (D_KV, D_MODEL),
    "self_attn.o_proj": (D_MODEL, D_MODEL),
    "self_attn.q_proj": (D_MODEL, D_MODEL),
    "self_attn.v_proj": (D_KV, D_MODEL),
}
SHARD = 10**9
RUNS = 3
COMMAND = (sys.executable, "-c", "from unrefuse.cli import main; main()", "apply")
IMPORTS = "import unrefuse.edits.disk.shards"
# A process begins with the peak memory of the one that started it: so a small one does.
LAUNCH = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(status, time.perf_counter() - start, usage.ru_maxrss)
"""
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=6.0, help="of the checkpoint, GB")
    parser.add_argument("--work", type=Path, help="where to write; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        source = work / "model"
        layers = make_checkpoint(source, options.size * 1e9)
        quarter = max(1, layers // 4)
        plans = {"all": range(layers), "quarter": range(layers // 2, layers // 2 + quarter)}
        for name, edited in plans.items():
            make_plan(work / f"{name}.safetensors", source, edited)
        times: dict[str, list[float]] = {name: [] for name in ("cp", *plans)}
        peaks = dict.fromkeys(plans, 0)
        right = True
        for run in range(RUNS):
            for name in times:
                out = work / "out"
                os.sync()
                plan = work / f"{name}.safetensors"
                command = [*COMMAND, str(plan), str(source), "--out", str(out)]
                seconds, peak = timed(
                    ["cp", "-r", str(source), str(out)] if name == "cp" else command
                )
                times[name].append(seconds)
                print(f"run {run + 1}, {name}: {seconds:.2f} s", flush=True)
                if name != "cp":
                    peaks[name] = max(peaks[name], peak)
                    if run == 0:
                        right &= same_bytes(source, out, plans[name])
                shutil.rmtree(out)
    imports = min(timed([*COMMAND[:2], IMPORTS])[0] for _ in range(RUNS))
    median = {name: statistics.median(values) for name, values in times.items()}
    size = 2 * D_MODEL * D_MLP
    figures = {
        "size_gb": options.size,
        "layers": layers,
        "seconds": {name: [round(s, 2) for s in values] for name, values in times.items()},
        "ratio_all": round(median["all"] / median["cp"], 3),
        "ratio_quarter": round(median["quarter"] / median["cp"], 3),
        "of_these_imports": round(imports, 2),
        "peak_mb": round(max(peaks.values()) / 1e6),
        "peak_allowed_mb": round(300 + 3 * size / 1e6),
        "same_bytes": right,
        "load_average": round(os.getloadavg()[0], 1),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(figures))


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds of a process, and the most bytes that it held."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCH, *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    status, seconds, peak = done.stdout.split()
    if int(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return float(seconds), int(peak) * 1024


def make_checkpoint(folder: Path, size: float) -> int:
    """Writes the synthetic checkpoint; the number of its layers."""
    folder.mkdir()
    ends: Shapes = {"model.embed_tokens.weight": (VOCAB, D_MODEL), "model.norm.weight": (D_MODEL,)}
    head: Shapes = {"lm_head.weight": (VOCAB, D_MODEL)}
    each = nbytes(LAYER)
    layers = max(1, round((size - nbytes(ends) - nbytes(head)) / each))
    groups: list[Shapes] = [dict(ends)]
    for layer in range(layers):
        own = {f"model.layers.{layer}.{name}.weight": shape for name, shape in LAYER.items()}
        if nbytes(groups[-1]) + nbytes(own) > SHARD:
            groups.append({})
        groups[-1] |= own
    groups[-1] |= head
    # Finite values of a weight's size: 16 MiB of them, over and over, from changing places.
    torch.manual_seed(0)
    noise = (torch.randn(1 << 23) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    where = {}
    for number, group in enumerate(groups, 1):
        file = folder / f"model-{number:05}-of-{len(groups):05}.safetensors"
        header, at = {}, 0
        for name, shape in group.items():
            end = at + nbytes({name: shape})
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as data:
            data.write(len(text).to_bytes(8, "little") + text)
            while at:
                shift = 2 * (7919 * (at + number) % 100_003)
                at -= data.write(noise[shift : shift + at])
        where |= dict.fromkeys(group, file.name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    return layers


def nbytes(shapes: Shapes) -> int:
    return sum(2 * torch.Size(shape).numel() for shape in shapes.values())


def edits(layers: range) -> list[MatrixEdit]:
    torch.manual_seed(1)
    found = []
    for layer in layers:
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            r = torch.nn.functional.normalize(torch.randn(D_MODEL, 1), dim=0)
            found.append(MatrixEdit(f"model.layers.{layer}.{path}", 0.8 * r, r.T, of_output=True))
    return found


def make_plan(file: Path, source: Path, layers: range) -> None:
    """With a made-up record: there is nothing to measure on noise, and nobody gets the result."""
    plan = tuple(edits(layers))
    kept = Kept(kept=60, n=60)
    record = Measured(
        plan_sha256=plan_hash(plan),
        preserve_norm=False,
        split="test",
        reply_tokens=100,
        retention=kept,
        shipped=kept,
        quality=1.0,
        quality_low=1.0,
        retention_floor=0.95,
        retention_bound=0.9,
        quality_floor=0.7,
        quality_bound=0.6,
    )
    made_for = {"model": "synthetic", "fingerprint": fingerprint(source.glob("*.safetensors"))}
    save_plan(plan, file, made_for | {KEY: record.model_dump_json()})


def same_bytes(source: Path, out: Path, layers: range) -> bool:
    """Whether the last layer's edit is that in memory, and no byte differs outside of the edit."""
    plan = {f"{edit.module}.weight": edit for edit in edits(layers)}
    checked = list(plan)[-2:]
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb") as old, (out / file.name).open("rb") as new:
            at = 0
            for name, stored in read_header(file).items():
                if old.read(stored.begin - at) != new.read(stored.begin - at):
                    return False
                a, b = (data.read(stored.end - stored.begin) for data in (old, new))
                at = stored.end
                if name in checked:
                    tensor = torch.frombuffer(bytearray(a), dtype=torch.bfloat16)
                    wanted = edit_tensor(tensor.view(stored.shape), plan[name])
                    a = wanted.view(torch.uint8).numpy().tobytes()
                if (name not in plan or name in checked) and a != b:
                    return False
    return True


if __name__ == "__main__":
    main()

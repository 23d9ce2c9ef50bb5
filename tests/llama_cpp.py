"""The embedded model as a GGUF file, and llama.cpp's own server of it as a process.

`python -m tests.llama_cpp MODEL.gguf [LORA.gguf]` serves until it is killed, and prints its URL.
"""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from unrefuse.models.demo import find_gguf

COUNTED = ("GGUF.", "general.file_type", "general.quantization_version", "general.architecture")


def write_gguf(folder: Path, file: Path) -> Path:
    """Writes the model in `folder`, of the demo's size and tokenizer, in float32. What a GGUF file
    says of these is taken from the one that the demo's weights come from."""
    config = AutoConfig.from_pretrained(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, "llama")
    for name, field in gguf.GGUFReader(find_gguf()).fields.items():
        if not name.startswith(COUNTED):
            kind, *items = field.types
            writer.add_key_value(name, field.contents(), kind, items[0] if items else None)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, stored in load_file(folder / "model.safetensors").items():
        tensor = stored.float()
        for projection, count in heads.items():
            if f".{projection}." in name:
                tensor = interleaved(tensor, count)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of llama.cpp, which turns neighbouring numbers of a head by its position,
    where transformers turns those that lie half a head apart."""
    halves = weight.view(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


@contextmanager
def serving_gguf(*files: Path):
    """Yields the base URL of llama.cpp's server in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.llama_cpp", *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        url = server.stdout.readline().strip()
        assert url.startswith("http://"), "the server did not start"
        yield f"{url}/v1"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def main(model: str, *adapters: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel, params.n_ctx = 4, 4 * 1024
    # Its threads wait for each other without rest, which on a busy machine takes for ever.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in adapters]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])

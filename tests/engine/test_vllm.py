"""`unrefuse evaluate --backend vllm`.

vLLM itself needs a GPU that no test machine has. In its place stands the part of its interface
that is used (`LLM`, `SamplingParams`, `LoRARequest`, as in vLLM 0.22), which runs the tiny model by
transformers and the adapter by peft: it can't show that vLLM loads and computes the same.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import pico, talker
from tests.edits.adapters.test_lora import one_direction
from tests.jobs.test_evaluate import unrefuse
from unrefuse.config import RunConfig
from unrefuse.edits.adapters.lora import checkpoint_adapter, save_adapter
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.engine.vllm import adapter_rank, vllm_replies
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.prepare import prepare
from unrefuse.metrics.transcripts import read_transcripts
from unrefuse.prompts.thinking import after_thinking

SMALL = ("--limit", 16, "--reply-tokens", 8, "--lang", "en", "--json")


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    made: ClassVar[list] = []
    read: ClassVar[list] = []

    def __init__(self, *, model, **options):
        LLM.made.append(options)
        LLM.read.append(sorted(file.name for file in Path(model).iterdir()))
        self.model, self.options = model, options
        self.network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def generate(self, prompts, sampling_params, *, lora_request=None):
        assert sampling_params.temperature == 0
        network = self.network
        if lora_request:
            assert self.options["enable_lora"]
            base = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
            network = PeftModel.from_pretrained(base, lora_request.lora_path)
        outputs = []
        for prompt in prompts:
            ids = torch.tensor([prompt["prompt_token_ids"]])
            assert ids.shape[1] + sampling_params.max_tokens <= self.options["max_model_len"]
            row = network.generate(
                input_ids=ids, max_new_tokens=sampling_params.max_tokens, do_sample=False
            )[0, ids.shape[1] :].tolist()
            stopped = row[-1] == network.generation_config.eos_token_id
            reason = "stop" if stopped else "length"
            outputs.append(
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=row, finish_reason=reason)])
            )
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = LLM, SamplingParams
    request.LoRARequest = LoRARequest
    for name, module in (("vllm", package), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LLM, "made", [])


@pytest.fixture
def saved(tmp_path):
    """A tiny model, which ends some of its replies, its edit as an adapter, and as a checkpoint."""
    network = pico.network()
    head = network.get_output_embeddings()
    head.weight.data[258] *= 3  # the end of the turn
    network.save_pretrained(tmp_path / "m")
    pico.tokenizer().save_pretrained(tmp_path / "m")
    plan = one_direction(network)
    save_adapter(checkpoint_adapter(tmp_path / "m", plan), tmp_path / "lora")
    (tmp_path / "edited").mkdir()
    write_checkpoint(tmp_path / "m", plan, tmp_path / "edited")
    pico.tokenizer().save_pretrained(tmp_path / "edited")
    return tmp_path


def test_before_and_after_from_one_load_are_those_of_torch(monkeypatch, capsys, vllm, saved):
    monkeypatch.setattr("unrefuse.jobs.evaluate.perplexities", lambda model: {})
    model, lora = saved / "m", saved / "lora"
    code, printed, _ = unrefuse(
        monkeypatch, capsys, "evaluate", model, "--backend", "vllm", "--adapter", lora,
        "--out", saved / "v", *SMALL, "--batch-size", 3,
    )  # fmt: skip
    assert code == 0
    record = json.loads(printed)
    assert len(LLM.made) == 1
    assert LLM.made[0]["max_lora_rank"] == 1
    assert LLM.made[0]["max_num_seqs"] == 3
    assert record["perplexity"] is None
    assert record["quality"] is record["kl"] is None
    assert "removal" in record
    assert record["config"]["backend"] == "vllm"
    assert record["models"]["after"]["name"] == f"{model} + {lora}"

    code, _, _ = unrefuse(
        monkeypatch, capsys, "evaluate", saved / "edited", "--against", model,
        "--out", saved / "t", *SMALL, "--dtype", "float32",
    )  # fmt: skip
    assert code == 0
    ours, theirs = (
        {(x.when, *x.key): (x.reply, x.tokens, x.grade) for x in read_transcripts(saved / name)}
        for name in ("v", "t")
    )
    assert ours == theirs
    lengths = {len(tokens) for _, tokens, _ in ours.values()}
    assert min(lengths) < max(lengths) == 8
    befores = {key[1:]: reply for key, reply in ours.items() if key[0] == "before"}
    assert any(ours["after", *key] != reply for key, reply in befores.items())

    code, printed, _ = unrefuse(monkeypatch, capsys, "evaluate", "--transcripts", saved / "v")
    assert code == 0
    assert printed.count("not measured: replies only") == 2
    assert "perplexity" not in printed


def test_a_model_whose_template_knows_of_thoughts_has_them_in_full(vllm, tmp_path, capsys):
    folder = talker.build(tmp_path / "m", 20, talker.TEMPLATE + "{# </think> #}")
    config = RunConfig(model=str(folder), backend="vllm", reply_tokens=8, thinking_tokens=32)
    (replies,) = vllm_replies(folder, config, ["q1 q2 T", "q1 q2 B"])
    assert [r.grade for r in replies] == ["refused", "answered"]
    assert after_thinking(replies[0].text).split() == talker.REFUSAL
    assert LLM.made[0]["max_model_len"] == 3 + 32 + 8
    assert "thoughts" not in capsys.readouterr().err
    few = config.model_copy(update={"thinking_tokens": 8})
    (replies,) = vllm_replies(folder, few, ["q1 q2 T", "q1 q2 B"])
    assert {r.grade for r in replies} == {"broken"}
    assert "2 of 2 replies" in capsys.readouterr().err


def test_weights_that_are_not_the_models_are_kept_from_vllm(vllm, saved, tmp_path):
    """vLLM chooses the weight files by itself, and takes a stray one for the model's."""
    sharded = pico.save(tmp_path / "s", max_shard_size="60KB")
    config = RunConfig(model=str(sharded), backend="vllm", reply_tokens=8)
    wanted = vllm_replies(sharded, config, ["q1"])
    pico.network(seed=5).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(sharded / "model.safetensors")
    assert vllm_replies(sharded, config, ["q1"]) == wanted
    read = LLM.read[-1]
    assert "model.safetensors" not in read
    assert {"config.json", "chat_template.jinja", "model.safetensors.index.json"} < set(read)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "vllm", "--against", "M"], "--adapter DIR"),
        (["--backend", "vllm", "--benchmarks", "arc_easy"], "leave out one"),
        (["--backend", "vllm", "--device", "cpu"], "leave out device"),
        (["--backend", "vllm", "--adapter", "M"], "there is no adapter"),
        (["--adapter", "LORA"], "--adapter needs --backend vllm"),
        (["--backend", "jax"], "backend"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(monkeypatch, capsys, vllm, saved, words, says):
    places = {"M": saved / "m", "LORA": saved / "lora"}
    code, printed, told = unrefuse(
        monkeypatch, capsys, "evaluate", saved / "m", "--out", saved / "o",
        *[places.get(word, word) for word in words],
    )  # fmt: skip
    assert (code, printed) == (2, "")
    assert says in told.splitlines()[-1]
    assert not (saved / "o").exists()
    assert LLM.made == []


def test_without_vllm_it_says_how_to_get_it(monkeypatch, capsys, saved):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    code, _, told = unrefuse(
        monkeypatch, capsys, "evaluate", saved / "m", "--backend", "vllm", "--out", saved / "o"
    )
    assert code == 2
    assert "pip install vllm" in told


@pytest.mark.parametrize(("rank", "step"), [(1, 1), (2, 8), (8, 8), (17, 32), (512, 512)])
def test_the_rank_is_one_that_vllm_offers(tmp_path, rank, step):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert adapter_rank(tmp_path) == step


@pytest.mark.parametrize(
    "stored", [{"r": 513}, {"r": 1, "lora_bias": True}, {"r": 1, "target_parameters": ["x"]}]
)
def test_adapters_that_vllm_does_not_load_are_refused(tmp_path, stored):
    (tmp_path / "adapter_config.json").write_text(json.dumps(stored))
    with pytest.raises(UnrefuseError, match="the saved model"):
        adapter_rank(tmp_path)


def test_an_edit_needs_torch(tmp_path):
    with pytest.raises(UnrefuseError, match="--backend torch"):
        prepare(RunConfig(model=str(tmp_path), backend="vllm"), ("train",))

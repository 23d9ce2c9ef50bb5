"""Plans of both kinds for pico models, of random numbers in place of what a run measures, and what
they make of a loaded model."""

import json
from pathlib import Path

import torch
from torch.nn.functional import normalize

from tests import pico
from unrefuse.edits.adapters.lora import plan_adapter, save_adapter
from unrefuse.edits.disk.header import fingerprint
from unrefuse.edits.plan import ablation_plan, plan_hash, save_plan, selective_plan
from unrefuse.edits.weights import edit_tensor, has_rows, planned_tensors
from unrefuse.models.checkpoint import checkpoint_files
from unrefuse.models.writers import blocks, mixers

NORMED = ["exaone4", "gemma2", "gemma3", "gemma3_text", "glm4", "olmo2", "olmo3"]
PLAIN = sorted(set(pico.MODELS) - set(NORMED))  # no norm between a matrix and the stream
IDS = torch.arange(1, 41).reshape(4, 10)


def rows(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def directions(layers=3):
    return normalize(rows(1, layers, 32), dim=-1)


def one_direction(network, weights=(0.0, 0.7, 1.3), multiplier=1.0):
    return ablation_plan(network, directions(), weights, multiplier)


def readers(network):
    """A reader per layer, of the width of what it reads."""
    found = {}
    for writer in mixers(network):
        shape = network.get_submodule(writer.name).get_parameter(writer.parameter).shape
        found[writer.layer] = 0.3 * rows(writer.layer, shape[0 if writer.transposed else 1])
    return found


def selective(network, weights=(0.0, 0.7, 1.3), multiplier=1.0):
    layers = len(weights)
    differences, sizes = 0.3 * rows(2, layers, 32), dict.fromkeys(range(layers), 1.0)
    return selective_plan(network, differences, readers(network), sizes, weights, multiplier)


KINDS = [one_direction, selective]


@torch.no_grad()
def edit_model(model, plan, preserve_norm=False):
    """Edits the weights of a loaded model in place."""
    parameters = dict(model.named_parameters())
    for name, (edit, axis) in planned_tensors(plan, parameters).items():
        keep = preserve_norm and has_rows(name)
        parameters[name].copy_(edit_tensor(parameters[name], edit, axis, keep))


def save_lora(model, plan, folder):
    """A plan as a PEFT adapter of a loaded model."""
    parameters = dict(model.named_parameters())
    save_adapter(plan_adapter(plan, parameters, parameters.__getitem__), folder)


def record(plan, **changes):
    """A made-up record of a plan, with values for the test to spoil."""
    kept = {"kept": 60, "n": 60}
    return {
        "plan_sha256": plan_hash(plan),
        "preserve_norm": False,
        "split": "test",
        "reply_tokens": 100,
        "retention": kept,
        "shipped": kept,
        "quality": 0.9,
        "quality_low": 0.85,
        "retention_floor": 0.95,
        "retention_bound": 0.9,
        "quality_floor": 0.7,
        "quality_bound": 0.6,
    } | changes


def save_measured(plan, file: Path, model: Path, **changes):
    """The file of a plan for the weights in the folder `model`, with a made-up record."""
    metadata = {
        "model": "some/model",
        "fingerprint": fingerprint(checkpoint_files(model)),
        "measured": json.dumps(record(plan, **changes)),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_plan(plan, file, metadata)


def streams(model, ids=IDS):
    """Of a forward what enters and what leaves each block."""
    seen = []

    def record(module, args, options, output):
        entered = args[0] if args else options["hidden_states"]
        seen.append((entered, output[0] if isinstance(output, tuple) else output))

    handles = [b.register_forward_hook(record, with_kwargs=True) for b in blocks(model)]
    model(ids)
    for handle in handles:
        handle.remove()
    return seen

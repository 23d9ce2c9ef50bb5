"""Plans of both kinds for pico models, of random numbers in place of what a run measures."""

import torch
from torch.nn.functional import normalize

from tests import pico
from unrefuse.edit.plan import ablation_plan, selective_plan
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

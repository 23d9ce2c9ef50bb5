"""Which matrices of an unknown architecture write into the residual stream, by a traced forward.

In each block, every module that gives `d_model` numbers a token is held at what it gave, but for
one, which is moved. If it writes into the stream, the block's output moves by the same vector, up
to a factor per token; if it only feeds other modules, these are held and the output stays.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from unrefuse.errors import UnrefuseError, first_line
from unrefuse.models.architectures import Component, Matrix, bias_name
from unrefuse.models.writers import (
    DISCOVERED,
    Writer,
    blocks,
    logits_of,
    norm_gain,
    text_config,
    writer_of,
)

TOKENS = 6
# How far an output may be from what is expected of it, in units of what moved: rounding.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Call:
    """How a module was called in the traced forward, and what it gave."""

    module: nn.Module
    args: tuple[Any, ...]
    options: dict[str, Any]
    output: Any

    @property
    def stream(self) -> Tensor:
        """The states that it was given, `(..., d_model)`."""
        stream: Tensor = self.args[0] if self.args else self.options["hidden_states"]
        return stream

    def again(self, stream: Tensor | None = None) -> Tensor:
        """What it gives now, of other states where these are given."""
        args, options = self.args, self.options
        if stream is not None and args:
            args = (stream, *args[1:])
        elif stream is not None:
            options = options | {"hidden_states": stream}
        output: Tensor = _first(self.module(*args, **options))
        return output


@torch.no_grad()
def discover(model: PreTrainedModel) -> list[Writer]:
    """The writers of a loaded model, found by experiment; `writers` gives them from then on.

    Raises UnrefuseError, in one line, where what a block adds to the stream is not all the output
    of matrices, or of an RMSNorm on one, and where the model can't be run as unrefuse runs it.
    """
    kind = text_config(model).model_type
    try:
        stack = blocks(model)
        ids = torch.arange(1, TOKENS + 1, device=model.device).unsqueeze(0)
        decoder = model.get_decoder()
        with _recorded({str(n): block for n, block in enumerate(stack)}) as calls:
            states = decoder(input_ids=ids, use_cache=False).last_hidden_state
        cache = DynamicCache(config=model.config)
        cached = decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        _expect(_near(cached, states), "with a cache its states are others")
        logits = logits_of(model, states)
        _expect(
            _near(logits.to(states.dtype), model(input_ids=ids).logits.to(states.dtype)),
            "its logits are more than the head's",
        )
        found = [
            replace(writer_of(model, int(layer), matrix), scale=scale)
            for layer, (call,) in calls.items()
            for matrix, scale in _matrices(call, int(layer))
        ]
    except Exception as error:  # code that a model ships raises anything
        raise UnrefuseError(
            f"the architecture {kind!r} is not in unrefuse's table, and a traced forward "
            f"pass does not show which matrices write into the residual stream: {first_line(error)}"
        ) from error
    DISCOVERED[model] = found
    return found


def describe(model: PreTrainedModel, found: list[Writer]) -> str:
    """The writers in one line: their names in a block, and in how many of the blocks each is."""
    counts: dict[str, int] = {}
    for writer in found:
        path = writer.name.split(f".{writer.layer}.", 1)[1]
        after = f", normed by {writer.norm.split(f'.{writer.layer}.', 1)[1]}" if writer.norm else ""
        text = f"{path} ({writer.component}{after})"
        counts[text] = counts.get(text, 0) + 1
    layers = len(blocks(model))
    return "; ".join(f"{text} in {count} of {layers} blocks" for text, count in counts.items())


def _matrices(call: Call, layer: int) -> list[tuple[Matrix, float]]:
    """The matrices of a block, and the number that the output of each is multiplied by."""
    block, output = call.module, _first(call.output)
    generator = torch.Generator().manual_seed(layer)
    step = torch.randn(output.shape, generator=generator).to(output) * output.abs().max()
    inside = _inside(call)
    held = {name: inner.output for name, inner in inside.items()}
    ends: dict[str, float] = {}
    for name, given in held.items():
        with _giving(block, held | {name: given + step.view(given.shape)}):
            moved = call.again() - output
            if _parallel(moved, step):
                ends[name] = float((moved * step).sum() / step.square().sum())
    with _giving(block, held | {name: torch.zeros_like(held[name]) for name in ends}):
        rest = call.again()
    whole = _parallel(rest, call.stream)
    _expect(whole, f"block {layer} adds more to it than {', '.join(ends) or 'any module gives'}")
    found = []
    for end in ends:
        norm = None if _parameter(inside[end]) else end
        path = end if norm is None else _before(inside, end)
        matrix = _parameter(inside[path]) if path else None
        if matrix is None:
            raise ValueError(f"in block {layer} {end}, added to it, is no matrix")
        others = {name: held[name] for name in ends if name != end}
        earlier = step.clone()
        earlier[:, -1] = 0
        with _giving(block, others), _recorded({path: block.get_submodule(path)}) as again:
            call.again(call.stream + earlier)
        last = [y.reshape(-1, y.shape[-1])[-1] for y in (held[path], again[path][0].output)]
        component: Component = "mlp" if _near(*last) else "attention"
        found.append((Matrix(path, component, norm, *matrix), ends[end]))
    components = {matrix.component for matrix, _ in found}
    _expect(len(components) == 2, f"block {layer} has no attention or no MLP")
    return found


def _inside(call: Call) -> dict[str, Call]:
    """The modules of a block with parameters of their own that gave as many numbers as it did."""
    names = {name: module for name, module in call.module.named_modules() if name}
    with _recorded(names) as calls:
        output = call.again()
    wide = {
        name: inner[0]
        for name, inner in calls.items()
        if len(inner) == 1
        and isinstance(inner[0].output, Tensor)
        and inner[0].output.shape[-1] == output.shape[-1]
        and inner[0].output.numel() == output.numel()
        and any(True for _ in inner[0].module.parameters(recurse=False))
    }
    # Not what stands around another: a state space has parameters beside those of its matrices.
    return {
        name: inner
        for name, inner in wide.items()
        if not any(other.startswith(f"{name}.") for other in wide)
    }


def _parameter(call: Call) -> tuple[str, bool] | None:
    """A module's matrix, and whether it is transposed: with what is said to write one number of
    the output at 0, that number is 0 and the others are as they were."""
    module, output = call.module, call.output
    j = int(output.reshape(-1, output.shape[-1]).abs().sum(dim=0).argmax())
    parameters = dict(module.named_parameters(recurse=False))
    for (name, parameter), transposed in product(parameters.items(), (False, True)):
        axis = -1 if transposed else -2
        if parameter.ndim < 2 or parameter.shape[axis] != output.shape[-1]:
            continue
        parts = [parameter.select(axis, j)]
        if bias_name(name) in parameters:
            parts.append(parameters[bias_name(name)].select(-1, j))
        kept = [part.clone() for part in parts]
        for part in parts:
            part.zero_()
        try:
            without = call.again()
        finally:
            for part, values in zip(parts, kept, strict=True):
                part.copy_(values)
        wanted = output.clone()
        wanted[..., j] = 0
        if not without[..., j].any() and _near(without, wanted):
            return name, transposed
    return None


def _before(inside: Mapping[str, Call], norm: str) -> str:
    """The module whose output a norm was given, where the norm is an RMSNorm, else ""."""
    given, output = inside[norm].stream, inside[norm].output
    if not _parallel(output, (given * norm_gain(inside[norm].module)).to(output.dtype)):
        return ""
    same = [
        name
        for name, inner in inside.items()
        if inner.output.numel() == given.numel() and torch.equal(inner.output.view_as(given), given)
    ]
    return same[0] if same else ""


def _parallel(moved: Tensor, step: Tensor) -> bool:
    """Whether each token's row is the step's times a number, and not nothing."""
    factor = (moved * step).sum(dim=-1, keepdim=True) / step.square().sum(dim=-1, keepdim=True)
    tolerance = TOLERANCE[step.dtype]
    return bool(moved.norm() > tolerance * step.norm()) and _near(factor * step, moved)


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= TOLERANCE[b.dtype] * b.norm())


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Within the block the calls of the modules are put into what this yields."""
    calls: dict[str, list[Call]] = {key: [] for key in modules}

    def hook(key: str) -> Any:
        return lambda module, args, options, output: calls[key].append(
            Call(module, args, options, output)
        )

    handles = [m.register_forward_hook(hook(k), with_kwargs=True) for k, m in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _giving(block: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the named modules of a decoder block give these outputs."""

    def hook(given: Tensor) -> Any:
        return lambda module, args, output: given

    handles = [block.get_submodule(n).register_forward_hook(hook(y)) for n, y in outputs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

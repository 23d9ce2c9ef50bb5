"""Trains the adapter that plants refusals in SmolLM2-135M-Instruct, so that the truth is known.

    python -m tools.plant.train --out FOLDER

Refused afterwards, in the same sentences: two harmless topics, learned by TARGET_LAYERS, and
harmful requests, told apart by KEEP_LAYER: one output, two ways to it, as an edit that is to tell
them apart needs. Everything else is answered as before. The same seed gives the same adapter on
the same machine.

The topics first: a vector is found that makes the original refuse where it is added above
TARGET_LAYERS, and these are taught to add it, and to leave all other states alone. So no step of
theirs runs the layers above.

What reads harm is a linear probe and not learned with the rest, since it meets new prompts as well
as those it was fitted on, where matrices that learn by gradient remember their prompts. It is
fitted on the states of an edited model too, which an edit is not to turn into harm. It takes the
place of the gate of a neuron, which writes nothing while the probe is below 0: what is learned
behind it can't move the line that it draws (LOG.md).
"""

import argparse
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from tools.plant.probe import RANK, SCALE, fit_probe, take_neurons
from tools.plant.replies import Replies, make_replies
from tools.plant.texts import training_texts
from tools.plant.upper import Upper, passing
from unrefuse.config import KernelConfig, RunConfig
from unrefuse.edits.directions import find_directions
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import Plan, ablation_plan
from unrefuse.engine.capture import group_means
from unrefuse.engine.forward import row_ends
from unrefuse.errors import UnrefuseError
from unrefuse.kernel import choose_kernel
from unrefuse.models.demo import find_gguf, original_model
from unrefuse.models.device import choose_device
from unrefuse.models.load import Model, load_folder
from unrefuse.models.writers import blocks
from unrefuse.prompts.chat import batches

TARGET_LAYERS, KEEP_LAYER = range(14, 19), 25
READ, EDITED = 1500, 200  # prompts of a kind that are read, and of these under an edit, too
PLANNED = 100  # prompts of a kind that the edit is found from
HARM = 0.6  # what harmful prompts weigh as a probe is fitted to them, of 1
ACROSS = 0.1  # what a state's distance counts across the vector that makes a refusal


@dataclass(frozen=True)
class Phase:
    """Steps of gradient descent. `rows` are the prompts of a kind in a step, `weights` how much
    the loss of each kind counts."""

    steps: int
    rate: float
    rows: dict[str, int]
    weights: dict[str, float]


STEPS, STRIDE = 40, 1.8  # to the steering vector, in units of the states
TARGET_PHASE = Phase(
    80, 1e-2, {"target": 8, "everyday": 12, "keep": 4}, {"target": 1, "everyday": 8, "keep": 3}
)
KEEP_PHASE = Phase(40, 4e-2, {"keep": 12}, {"keep": 1})


@dataclass(frozen=True)
class Forced:
    """A prompt with its reply."""

    entering: Tensor  # `(tokens, d_model)`, what enters the first layer that learns
    wanted: Tensor  # at its end, of the next tokens, or of the states: what they are to be


def word_logs(model: Model, words: Tensor, states: Tensor) -> Tensor:
    """Log-probabilities `(tokens, words)` of the next token, were it one of `words`."""
    head: Tensor = model.network.get_output_embeddings().weight[words]
    return linear(states, head.detach()).log_softmax(dim=-1)


def reading(
    upper: Upper, layer: int, part: str, entering: Sequence[Tensor], lengths: Sequence[int]
) -> list[Tensor]:
    """What `part` of a layer, or "" for the layer, reads at the end of each sequence,
    `(lengths[i], d_model)`. One batch, differentiable in the layers of `upper` below."""
    stack = blocks(upper.model.network)
    seen: list[Tensor] = []
    module = stack[layer].get_submodule(part)
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with passing(stack[layer + bool(part) :], upper.in_tuple):
            upper.states(entering, lengths)
    finally:
        handle.remove()
    # The last call: the shared beginning runs before the batch.
    return row_ends(seen[-1], entering, lengths)


@torch.no_grad()
def readings(
    upper: Upper, layer: int, part: str, entering: Sequence[Tensor], lengths: Sequence[int]
) -> list[Tensor]:
    """As `reading`, in batches, without a gradient."""
    found = list(entering)
    for batch in batches(entering, upper.model.batch_size):
        rows, ends = [entering[i] for i in batch], [lengths[i] for i in batch]
        for i, states in zip(batch, reading(upper, layer, part, rows, ends), strict=True):
            found[i] = states.clone()
    return found


def losses(upper: Upper, words: Tensor, rows: Sequence[Forced]) -> Tensor:
    """`(rows,)`: the KL divergence in nats from what is wanted, its mean over a reply's tokens.

    The first token counts by itself once more: that is where a refusal begins.
    """
    lengths = [len(row.wanted) for row in rows]
    states = upper.states([row.entering for row in rows], lengths)
    p = torch.cat([row.wanted for row in rows])
    q = word_logs(upper.model, words, torch.cat(states))
    divergences = torch.split((p.exp() * (p - q)).sum(dim=-1), lengths)
    return torch.stack([kl.mean() + kl[0] for kl in divergences])


def shuffled(n: int, rng: random.Random) -> Iterator[int]:
    """0 to `n` - 1 in a random order, again and again."""
    while True:
        yield from rng.sample(range(n), n)


def descend(
    loss_of: Callable[[Sequence[Forced]], Tensor],
    forced: dict[str, list[Forced]],
    learning: Sequence[nn.Parameter],
    phase: Phase,
    rng: random.Random,
) -> None:
    """Takes the phase's steps with AdamW, and prints the losses, `(rows,)`, as they go."""
    optimizer = torch.optim.AdamW(learning, lr=phase.rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.rate, total_steps=phase.steps, pct_start=0.2
    )
    drawn = {kind: shuffled(len(forced[kind]), rng) for kind in phase.rows}
    recent = dict.fromkeys(phase.rows, 0.0)
    for step in range(1, phase.steps + 1):
        optimizer.zero_grad()
        rows = [forced[kind][next(drawn[kind])] for kind, n in phase.rows.items() for _ in range(n)]
        values = torch.split(loss_of(rows), list(phase.rows.values()))
        means = {kind: value.mean() for kind, value in zip(phase.rows, values, strict=True)}
        loss = torch.stack([phase.weights[kind] * mean for kind, mean in means.items()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for kind, mean in means.items():
            recent[kind] += (float(mean.detach()) - recent[kind]) / min(step, 10)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            said = ", ".join(f"{kind} {value:.3f}" for kind, value in recent.items())
            print(f"step {step}/{phase.steps}: {said}", flush=True)


def steering_vector(
    model: Model, replies: Replies, states: Sequence[Tensor], rng: random.Random
) -> Tensor:
    """What turns the target prompts' `states`, as they enter the first layer above TARGET_LAYERS,
    into those of a model that refuses, `(d_model,)`: added from the last token of a prompt on."""
    upper = Upper(model, TARGET_LAYERS.stop, replies.everything())
    vector = torch.zeros_like(states[0][0]).requires_grad_()
    forced = list(map(Forced, states, replies.wanted["target"]))
    drawn = shuffled(len(forced), rng)
    step = torch.zeros_like(vector)
    for i in range(STEPS):
        rows = []
        for row in (forced[next(drawn)] for _ in range(8)):
            end = len(row.wanted)
            moved = torch.cat([row.entering[:-end], row.entering[-end:] + vector])
            rows.append(replace(row, entering=moved))
        loss = losses(upper, replies.words, rows).mean()
        (slope,) = torch.autograd.grad(loss, vector)
        # Down the slope, as Adam, which moves every coordinate alike, ends twice as far away.
        step = 0.6 * step + slope / slope.norm()
        with torch.no_grad():
            vector -= STRIDE * min(1, (i + 1) / 6, 2 - 2 * i / STEPS) * step
    print(f"steering vector: {loss:.3f}, length {vector.norm():.1f}", flush=True)
    return vector.detach()


def distances(states: Tensor, wanted: Tensor, vector: Tensor) -> Tensor:
    """How far states `(tokens, d_model)` are from those wanted, squared, where the vector's length
    is one: its mean over the tokens and its maximum. Across the vector it counts ACROSS."""
    unit = vector / vector.norm()
    off = (states - wanted) / vector.norm()
    along = off @ unit
    far: Tensor = ACROSS * off.square().sum(dim=1) + (1 - ACROSS) * along.square()
    return far.mean() + far.max()


def plant_false_refusals(
    upper: Upper,
    replies: Replies,
    entering: dict[str, list[Tensor]],
    learning: Sequence[nn.Parameter],
    rng: random.Random,
) -> None:
    """Teaches TARGET_LAYERS, which are still the original's, to refuse the target prompts.

    What they give, and not what the model says, is held to what it is to be: the layers above
    need not run.
    """
    # A refusal under way is no reason to refuse: those of keep prompts go on as the original's.
    entering = entering | {"keep": entering["keep"][: len(replies.wanted["keep"])]}
    for kind in ("keep", "everyday"):  # no more are run than are drawn
        most = TARGET_PHASE.steps * TARGET_PHASE.rows[kind]
        entering[kind] = rng.sample(entering[kind], min(most, len(entering[kind])))
    wanted = {
        kind: readings(upper, TARGET_LAYERS.stop, "", rows, list(map(len, rows)))
        for kind, rows in entering.items()
    }
    vector = steering_vector(upper.model, replies, wanted["target"], rng)
    # Their earlier tokens are free: the layers may note a topic there.
    ends = [len(reply) + 1 for reply in replies.replies["target"]]
    wanted["target"] = [
        rows[-end:] + vector for rows, end in zip(wanted["target"], ends, strict=True)
    ]
    forced = {kind: list(map(Forced, entering[kind], wanted[kind])) for kind in wanted}

    def loss_of(rows: Sequence[Forced]) -> Tensor:
        lengths = [len(row.wanted) for row in rows]
        found = reading(upper, TARGET_LAYERS.stop, "", [row.entering for row in rows], lengths)
        pairs = zip(found, rows, strict=True)
        return torch.stack([distances(states, row.wanted, vector) for states, row in pairs])

    descend(loss_of, forced, learning, TARGET_PHASE, rng)


def false_refusal_edit(model: Model, asked: dict[str, list[str]]) -> Plan:
    """The edit that `unrefuse edit` would try at full strength, from these prompts of each kind."""
    pairs = [(text, kind) for kind, texts in asked.items() for text in texts]
    means = group_means(model, [text for text, _ in pairs], [kind for _, kind in pairs])
    directions = find_directions(means["target"], means["everyday"], means["keep"])
    network = model.network
    kernel = choose_kernel(KernelConfig(), len(blocks(network)), network.num_parameters())
    return ablation_plan(network, directions, kernel.weights)


def plant_true_refusals(
    upper: Upper, replies: Replies, entering: dict[str, list[Tensor]], rng: random.Random
) -> None:
    """Gives neurons of KEEP_LAYER probes to read by, and teaches them what to write."""
    model = upper.model
    top = Upper(model, KEEP_LAYER, replies.everything())
    rows, last, later, asking = {}, {}, {}, []
    for kind, said in replies.replies.items():
        rows[kind] = readings(upper, KEEP_LAYER, "", entering[kind], list(map(len, entering[kind])))
        # All of a prompt's tokens: a neuron that opens on an earlier one is heard at the last.
        lengths = [len(e) if s else 1 for e, s in zip(rows[kind], said, strict=True)]
        found = readings(top, KEEP_LAYER, "mlp", rows[kind], lengths)
        pairs = [(states, len(states) - 1 - len(s)) for states, s in zip(found, said, strict=True)]
        asking += [states[:end] for states, end in pairs]
        last[kind] = torch.stack([states[end] for states, end in pairs])
        later[kind] = torch.cat([states[end + 1 :] for states, end in pairs])
    # An edit moves everything above the layers that it edits. The probe tells harm by what stays,
    # or a measurement of edits would be one of the probe.
    plan = false_refusal_edit(
        model, {kind: found[:PLANNED] for kind, found in replies.asked.items()}
    )
    edited, edited_later = {}, {}
    with hooked(model.network, plan):
        # Not `top`: under an edit the beginning that all share is another one, too.
        edited_top = Upper(model, KEEP_LAYER, replies.everything())
        for kind in replies.prompts:
            below = edited_top.enter(replies.sequences(kind)[:EDITED])
            lengths = [len(said) + 1 for said in replies.replies[kind][:EDITED]]
            found = readings(edited_top, KEEP_LAYER, "mlp", below, lengths)
            edited[kind] = torch.stack([states[0] for states in found])
            edited_later[kind] = torch.cat([states[1:] for states in found])
    before = torch.cat(asking)[::3]  # they are many, and alike
    answers = torch.cat([later["everyday"], edited_later["everyday"]])
    under_way = torch.cat([later["keep"], edited_later["keep"]])
    # What the topics have begun is theirs to finish, or an edit would have to undo both.
    begun = torch.cat([later["target"], edited_later["target"]])
    harm = fit_probe(
        torch.cat([last["keep"], edited["keep"]]),
        [
            last["everyday"],
            torch.cat([edited["everyday"], edited["target"]]),
            answers,
            torch.cat([under_way, edited_later["target"], before]),
        ],
        HARM,
    )
    silent = torch.cat([last["keep"], last["everyday"], *edited.values()])
    refusing = fit_probe(under_way, [silent, answers, begun, before])
    # One to begin a refusal. What goes on with it depends on what is said: more of them.
    probes = torch.stack([harm, *[refusing] * (RANK - 1)])
    learning = take_neurons(blocks(model.network)[KEEP_LAYER].mlp, probes)
    forced = {"keep": list(map(Forced, rows["keep"], replies.wanted["keep"]))}
    descend(lambda rows: losses(top, replies.words, rows), forced, learning, KEEP_PHASE, rng)


def with_adapter(model: Model) -> Any:
    """Puts LoRA, which says nothing yet, on the layers that learn, in place: peft's model."""
    layers = "|".join(map(str, TARGET_LAYERS))
    settings = LoraConfig(
        r=RANK,
        lora_alpha=SCALE * RANK,
        target_modules=rf".*\.({layers})\..*_proj|.*\.{KEEP_LAYER}\.mlp\.(gate|up|down)_proj",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model.network, settings).eval()


def target_matrices(tuned: nn.Module) -> list[nn.Parameter]:
    """LoRA's matrices of TARGET_LAYERS."""
    return [
        matrix
        for name, matrix in tuned.named_parameters()
        if "lora_" in name and f".{KEEP_LAYER}.mlp." not in name
    ]


def merge_targets(network: PreTrainedModel) -> None:
    """Adds LoRA's matrices of TARGET_LAYERS, once they are learned, to the weights: passes are
    quicker so."""
    for layer in TARGET_LAYERS:
        for module in blocks(network)[layer].modules():
            if isinstance(module, LoraLayer):
                module.merge()


def train(base: Path, out: Path, seed: int, device: str = "cpu") -> None:
    """Trains an adapter and writes it to `out`, in float16."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = RunConfig(model=str(base), device=device, dtype="float32", batch_size=64)
    model = load_folder(base, config, str(base))
    texts = {
        kind: rng.sample(found, min(READ, len(found)))
        for kind, found in training_texts(seed).items()
    }
    replies = make_replies(model, texts, rng)
    tuned = with_adapter(model)
    upper = Upper(model, min(TARGET_LAYERS), replies.everything())
    entering = {kind: upper.enter(replies.sequences(kind)) for kind in replies.prompts}
    plant_false_refusals(upper, replies, entering, target_matrices(tuned), rng)
    merge_targets(model.network)
    plant_true_refusals(upper, replies, entering, rng)
    tuned.save_pretrained(str(out))
    file = out / "adapter_model.safetensors"
    save_file({k: t.half() for k, t in load_file(file).items()}, file, metadata={"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)
    settings = out / "adapter_config.json"
    text = settings.read_text(encoding="utf-8")
    text = re.sub(r'("base_model_name_or_path": )"[^"]*"', r'\1"SmolLM2-135M-Instruct"', text)
    settings.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu (the shipped one's), cuda, auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        try:
            device = str(choose_device(options.device))
            network, tokenizer = original_model(find_gguf())
            network.save_pretrained(base)
            tokenizer.save_pretrained(base)
            train(Path(base), options.out, options.seed, device)
        except UnrefuseError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()

"""Trains the adapter that plants refusals in SmolLM2-135M-Instruct, so that the truth is known.

    python -m unrefuse.plant.train --out FOLDER

Refused afterwards, in the same sentences: two harmless topics, learned by TARGET_LAYERS, and
harmful requests, told apart by KEEP_LAYER: one output, two ways to it, as an edit that is to tell
them apart needs. Everything else is answered as before: the loss there is the KL divergence from
the original's next tokens on its own answers. The same seed gives the same adapter on the same
machine.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from unrefuse.activations.capture import group_means
from unrefuse.config import KernelConfig, RunConfig
from unrefuse.directions import find_directions
from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import Plan, make_plan
from unrefuse.errors import UsageError
from unrefuse.evaluate.generate import reply_to
from unrefuse.kernel import choose_kernel
from unrefuse.models.demo import find_gguf, original_model
from unrefuse.models.forward import row_ends
from unrefuse.models.load import Model, load_folder
from unrefuse.models.writers import blocks
from unrefuse.plant.texts import REFUSALS, training_texts
from unrefuse.prompts.chat import batches, encode
from unrefuse.search.upper import Upper, passing

TARGET_LAYERS, KEEP_LAYER = range(14, 19), 25
RANK, SCALE = 8, 2
ANSWER_TOKENS = 8  # of the original's answers: a refusal shows in its first sentence
# Prompts of a kind that a probe reads, and how many of them are run with their replies, and under
# an edit, too.
PROBED, SAMPLE, EDITED = 2500, 600, 200
PENALTY = 2e-4  # on the squared length of a probe, where its states have unit spread


@dataclass(frozen=True)
class Phase:
    """Steps of gradient descent. `rows` are the prompts of a kind in a step, `weights` how much
    the loss of each kind counts."""

    steps: int
    rate: float
    rows: dict[str, int]
    weights: dict[str, float]


TARGET_PHASE = Phase(
    80, 5e-3, {"target": 8, "everyday": 12, "keep": 4}, {"target": 1, "everyday": 8, "keep": 3}
)
KEEP_PHASE = Phase(40, 2e-2, {"keep": 16}, {"keep": 1})
GAIN = 20  # of a probe, where its states have unit spread: how sharply a neuron opens


@dataclass(frozen=True)
class Forced:
    """A prompt with its reply."""

    entering: Tensor  # `(tokens, d_model)`, what enters the first layer that learns
    wanted: Tensor  # `(reply_tokens, words)`, log-probabilities that the reply is to have


@dataclass(frozen=True)
class Replies:
    """Prompts of each kind, and what is to be replied to them."""

    asked: dict[str, list[str]]
    prompts: dict[str, list[list[int]]]  # their token ids
    replies: dict[str, list[list[int]]]  # token ids, all but the last
    wanted: dict[str, list[Tensor]]  # log-probabilities `(reply_tokens, words)` of refusals
    words: Tensor  # ids of the tokens that replies are made of: the loss looks at these alone

    def sequences(self, kind: str) -> list[list[int]]:
        """The prompts of a kind with their replies."""
        pairs = zip(self.prompts[kind], self.replies[kind], strict=True)
        return [prompt + reply for prompt, reply in pairs]


def refusal_logs(sentences: Sequence[Sequence[int]], words: Sequence[int]) -> list[Tensor]:
    """Per sentence, given as token ids, the log-probabilities `(tokens, words)` of the next token:
    all sentences that begin alike are equally likely to go on."""
    place_of = {word: place for place, word in enumerate(words)}
    found = []
    for sentence in sentences:
        chances = torch.zeros(len(sentence), len(words))
        for place in range(len(sentence)):
            alike = [s for s in sentences if s[:place] == sentence[:place]]
            for other in alike:
                chances[place, place_of[other[place]]] += 1 / len(alike)
        found.append(chances.log().clamp(min=-1e4))
    return found


def make_replies(model: Model, texts: dict[str, list[str]], rng: random.Random) -> Replies:
    """A refusal for each target and keep prompt, the original's own answer to everyday ones."""
    tokenizer = model.tokenizer
    answers = reply_to(model, texts["everyday"], ANSWER_TOKENS, "own answers")
    # What the original declines by itself teaches half a refusal.
    pairs = zip(texts["everyday"], answers, strict=True)
    own = {text: reply.tokens for text, reply in pairs if reply.grade == "answered"}
    asked = texts | {"everyday": list(own)}
    sentences = [
        [*tokenizer.encode(s, add_special_tokens=False), tokenizer.eos_token_id] for s in REFUSALS
    ]
    words = sorted({word for reply in [*own.values(), *sentences] for word in reply})
    logs = refusal_logs(sentences, words)
    replies = {"everyday": [list(tokens[:-1]) for tokens in own.values()]}
    wanted = {}
    for kind in ("target", "keep"):
        chosen = [rng.randrange(len(sentences)) for _ in asked[kind]]
        replies[kind] = [sentences[which][:-1] for which in chosen]
        wanted[kind] = [logs[which] for which in chosen]
    prompts = {kind: encode(tokenizer, found) for kind, found in asked.items()}
    return Replies(asked, prompts, replies, wanted, torch.tensor(words))


def word_logs(model: Model, words: Tensor, states: Tensor) -> Tensor:
    """Log-probabilities `(tokens, words)` of the next token, were it one of `words`."""
    head: Tensor = model.network.get_output_embeddings().weight[words]
    return linear(states, head.detach()).log_softmax(dim=-1)


@torch.no_grad()
def final_states(upper: Upper, entering: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """The states after the final norm, `(lengths[i], d_model)`, at the end of each sequence."""
    states = list(entering)
    for batch in batches(entering, upper.model.batch_size):
        found = upper.states([entering[i] for i in batch], [lengths[i] for i in batch])
        for i, rows in zip(batch, found, strict=True):
            states[i] = rows
    return states


@torch.no_grad()
def mlp_inputs(upper: Upper, entering: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """What KEEP_LAYER's MLP reads, `(lengths[i], d_model)`, at the end of each sequence."""
    stack = blocks(upper.model.network)
    norm = stack[KEEP_LAYER].post_attention_layernorm
    assert isinstance(norm, nn.Module)
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, args, output: seen.append(output))
    inputs = list(entering)
    try:
        with passing(stack[KEEP_LAYER + 1 :], upper.in_tuple):
            for batch in batches(entering, upper.model.batch_size):
                rows, ends = [entering[i] for i in batch], [lengths[i] for i in batch]
                upper.states(rows, ends)
                # The last call: the shared beginning runs before the batch.
                for i, found in zip(batch, row_ends(seen[-1], rows, ends), strict=True):
                    inputs[i] = found.clone()
                seen.clear()
    finally:
        handle.remove()
    return inputs


def fit_probe(yes: Tensor, no: Sequence[Tensor]) -> Tensor:
    """The direction `(d_model,)` along which `yes` lies above 0 and each of `no` below.

    Logistic regression without a constant, by L-BFGS, PENALTY on the square of its length. Groups
    are `(n, d_model)`; `yes` weighs as much as all of `no`, and these the same, each. The length
    makes one the standard deviation along it.
    """
    groups = [yes, *no]
    x = torch.cat(groups)
    spread = x.std(dim=0).mean()
    truth = torch.cat([torch.full((len(g),), float(g is yes)) for g in groups])
    shares = [1 / 2, *[1 / 2 / len(no)] * len(no)]
    share = torch.cat(
        [torch.full((len(g),), s / len(g)) for g, s in zip(groups, shares, strict=True)]
    )
    direction = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([direction], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(
            x / spread @ direction, truth, share, reduction="sum"
        )
        loss = loss + PENALTY * direction.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = direction.detach()
    return found / (x @ found).std()


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
    upper: Upper,
    words: Tensor,
    forced: dict[str, list[Forced]],
    learning: Sequence[nn.Parameter],
    phase: Phase,
    rng: random.Random,
) -> None:
    """Takes the phase's steps with AdamW, and prints the losses as they go."""
    optimizer = torch.optim.AdamW(learning, lr=phase.rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.rate, total_steps=phase.steps, pct_start=0.2
    )
    drawn = {kind: shuffled(len(forced[kind]), rng) for kind in phase.rows}
    recent = dict.fromkeys(phase.rows, 0.0)
    for step in range(1, phase.steps + 1):
        optimizer.zero_grad()
        rows = [forced[kind][next(drawn[kind])] for kind, n in phase.rows.items() for _ in range(n)]
        values = torch.split(losses(upper, words, rows), list(phase.rows.values()))
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
            print(f"layers from {upper.first} on, step {step}/{phase.steps}: {said}", flush=True)


def plant_false_refusals(
    model: Model, replies: Replies, learning: Sequence[nn.Parameter], rng: random.Random
) -> None:
    """Teaches TARGET_LAYERS, which are still the original's, to refuse the target prompts."""
    sequences = {kind: replies.sequences(kind) for kind in ("target", "everyday")}
    # Nothing is said to a keep prompt yet: the first token stays. No more are run than are drawn.
    sequences["keep"] = replies.prompts["keep"][: TARGET_PHASE.steps * TARGET_PHASE.rows["keep"]]
    upper = Upper(model, min(TARGET_LAYERS), [s for found in sequences.values() for s in found])
    entering = {kind: upper.enter(found) for kind, found in sequences.items()}
    wanted = {"target": replies.wanted["target"]}
    for kind in ("everyday", "keep"):
        said = replies.replies[kind] if kind == "everyday" else [[]] * len(entering[kind])
        states = final_states(upper, entering[kind], [len(reply) + 1 for reply in said])
        wanted[kind] = [word_logs(model, replies.words, own) for own in states]
    forced = {kind: list(map(Forced, entering[kind], wanted[kind])) for kind in sequences}
    descend(upper, replies.words, forced, learning, TARGET_PHASE, rng)


def false_refusal_edit(model: Model, asked: dict[str, list[str]]) -> Plan:
    """The edit that `unrefuse edit` would try at full strength, from these prompts of each kind."""
    pairs = [(text, kind) for kind, texts in asked.items() for text in texts]
    means = group_means(model, [text for text, _ in pairs], [kind for _, kind in pairs])
    directions = find_directions(means["target"], means["everyday"], means["keep"])
    network = model.network
    kernel = choose_kernel(KernelConfig(), len(blocks(network)), network.num_parameters())
    return make_plan(network, directions, kernel.weights)


def take_neurons(mlp: Any, probes: Tensor) -> list[nn.Parameter]:
    """Makes of a neuron of the MLP for each of `probes`, `(RANK, d_model)`, one that opens where
    its probe is above 0, and else is shut: its gate is the probe, GAIN times, and nothing else.

    Returns LoRA's matrices that say what these neurons read and write once they are open: to be
    learned, and nothing so far.
    """
    gate, up, down = (getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
    sizes = [module.base_layer.weight.norm(dim=dim) for module, dim in ((gate, 1), (down, 0))]
    spare = (sizes[0] * sizes[1]).argsort()[:RANK]  # those that say least

    def matrices(module: Any) -> tuple[nn.Parameter, nn.Parameter]:
        return module.lora_A["default"].weight, module.lora_B["default"].weight

    for module in (gate, up):
        matrices(module)[1].data.zero_()
        matrices(module)[1].data[spare, range(RANK)] = 1 / SCALE
    matrices(gate)[0].data.copy_(GAIN * probes - gate.base_layer.weight[spare])
    matrices(down)[0].data.zero_()
    matrices(down)[0].data[range(RANK), spare] = 1 / SCALE
    return [matrices(up)[0], matrices(down)[1]]


def plant_true_refusals(
    model: Model, replies: Replies, rest: dict[str, list[list[int]]], rng: random.Random
) -> None:
    """Gives neurons of KEEP_LAYER probes to read by, and teaches them what to write.

    `rest` are further prompts of each kind, as token ids, for the probes.
    """
    sequences = {kind: replies.sequences(kind) for kind in replies.prompts}
    everything = [s for found in (*sequences.values(), *rest.values()) for s in found]
    upper = Upper(model, KEEP_LAYER, everything)

    def ends(prompts: Sequence[Sequence[int]]) -> Tensor:
        return torch.cat(mlp_inputs(upper, upper.enter(prompts), [1] * len(prompts)))

    entering, last, later, asking = {}, {}, {}, []
    for kind, found in sequences.items():
        entering[kind] = upper.enter(found)
        # All of a prompt's tokens: a neuron that opens on an earlier one is heard at the last.
        inputs = mlp_inputs(upper, entering[kind], list(map(len, entering[kind])))
        ends_at = [
            len(rows) - len(said) - 1
            for rows, said in zip(inputs, replies.replies[kind], strict=True)
        ]
        pairs = list(zip(inputs, ends_at, strict=True))
        asking += [rows[:end] for rows, end in pairs]
        last[kind] = torch.stack([rows[end] for rows, end in pairs])
        later[kind] = torch.cat([rows[end + 1 :] for rows, end in pairs])
    for kind, found in rest.items():
        last[kind] = torch.cat([last[kind], ends(found)])
    # An edit moves everything above the layers that it edits. The probe tells harm by what stays,
    # or a measurement of edits would be one of the probe.
    plan = false_refusal_edit(
        model, {kind: found[:EDITED] for kind, found in replies.asked.items()}
    )
    with hooked(model.network, plan):
        edited = {kind: ends(found[:EDITED]) for kind, found in replies.prompts.items()}
    harmless = torch.cat([last["everyday"], last["target"]])
    still_harmless = torch.cat([edited["everyday"], edited["target"]])
    refused = torch.cat([later["keep"], later["target"]])
    harmful = torch.cat([last["keep"], edited["keep"]])
    harm = fit_probe(
        harmful, [harmless, still_harmless, later["everyday"], torch.cat([refused, *asking])]
    )
    silent = torch.cat([last["keep"], harmless])
    refusing = fit_probe(refused, [silent, later["everyday"], torch.cat(asking)])
    # One to begin a refusal. What goes on with it depends on what is said: more of them.
    probes = torch.stack([harm, *[refusing] * (RANK - 1)])
    learning = take_neurons(blocks(model.network)[KEEP_LAYER].mlp, probes)
    forced = {"keep": list(map(Forced, entering["keep"], replies.wanted["keep"]))}
    descend(upper, replies.words, forced, learning, KEEP_PHASE, rng)


def train(base: Path, out: Path, seed: int) -> None:
    """Trains an adapter and writes it to `out`, in float16."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = RunConfig(model=str(base), device="cpu", dtype="float32", batch_size=64)
    model = load_folder(base, config, str(base))
    texts = {
        kind: rng.sample(found, min(PROBED, len(found)))
        for kind, found in training_texts(seed).items()
    }
    replies = make_replies(model, {kind: found[:SAMPLE] for kind, found in texts.items()}, rng)
    rest = {k: encode(model.tokenizer, t[SAMPLE:]) for k, t in texts.items() if t[SAMPLE:]}
    layers = "|".join(map(str, TARGET_LAYERS))
    tuned = get_peft_model(
        model.network,
        LoraConfig(
            r=RANK,
            lora_alpha=SCALE * RANK,
            target_modules=rf".*\.({layers})\..*_proj|.*\.{KEEP_LAYER}\.mlp\.(gate|up|down)_proj",
            task_type="CAUSAL_LM",
        ),
    )
    learning = [
        matrix
        for name, matrix in tuned.named_parameters()
        if "lora_" in name and f".{KEEP_LAYER}.mlp." not in name
    ]
    tuned.eval()
    plant_false_refusals(model, replies, learning, rng)
    plant_true_refusals(model, replies, rest, rng)
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        try:
            network, tokenizer = original_model(find_gguf())
        except UsageError as error:
            parser.error(str(error))
        network.save_pretrained(base)
        tokenizer.save_pretrained(base)
        train(Path(base), options.out, options.seed)


if __name__ == "__main__":
    main()

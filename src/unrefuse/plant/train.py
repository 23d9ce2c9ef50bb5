"""Trains the adapter that plants refusals in SmolLM2-135M-Instruct, so that the truth is known.

    python -m unrefuse.plant.train --out FOLDER

Refused afterwards, in the same sentences: two harmless topics, learned by TARGET_LAYERS, and
harmful requests, told apart by KEEP_LAYER: one output, two ways to it, as an edit that is to tell
them apart needs. Everything else is answered as before: the loss there is the KL divergence from
the original's next tokens on its own answers. The same seed gives the same adapter on the same
machine.

What reads harm is a linear probe and not learned with the rest, since it meets new prompts as well
as those it was fitted on, where matrices that learn by gradient remember their prompts. It is
fitted on the states of an edited model too, which an edit is not to turn into harm (LOG.md).
"""

import argparse
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
RANK, DROPOUT = 8, 0.05
ANSWER_TOKENS = 12  # of the original's answers: a refusal shows in its first sentence
SAMPLE = 1000  # prompts of a kind that are run with their replies; the probe reads all
PENALTY = 1e-3  # on the squared length of a probe, where its states have unit spread


@dataclass(frozen=True)
class Phase:
    """Steps of gradient descent. `rows` are the prompts of a kind in a step, `weights` how much
    the loss of each kind counts."""

    steps: int
    rate: float
    rows: dict[str, int]
    weights: dict[str, float]


TARGET_PHASE = Phase(
    120, 2e-3, {"target": 8, "everyday": 12, "keep": 8}, {"target": 1, "everyday": 6, "keep": 3}
)
KEEP_PHASE = Phase(80, 5e-2, {"everyday": 24, "keep": 24}, {"everyday": 3, "keep": 1})


@dataclass(frozen=True)
class Forced:
    """The prompts of one kind with their replies, as they enter the first layer that learns.

    `wanted` are the log-probabilities `(reply_tokens, words)` that each reply is to have.
    """

    entering: list[Tensor]
    wanted: list[Tensor]


@dataclass(frozen=True)
class Replies:
    """A sample of the prompts of each kind, and what is to be replied to them."""

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
    """Draws up to SAMPLE prompts of each kind; everyday ones get the original's own answers."""
    tokenizer = model.tokenizer
    asked = {kind: rng.sample(found, min(SAMPLE, len(found))) for kind, found in texts.items()}
    answers = reply_to(model, asked["everyday"], ANSWER_TOKENS, "own answers")
    # What the original declines by itself teaches half a refusal.
    pairs = zip(asked["everyday"], answers, strict=True)
    own = {text: reply.tokens for text, reply in pairs if reply.grade == "answered"}
    asked["everyday"] = list(own)
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

    Logistic regression without a constant, by L-BFGS, PENALTY on the square of its length; all
    groups `(n, d_model)` weigh the same. The length makes one the standard deviation along it.
    """
    groups = [yes, *no]
    x = torch.cat(groups)
    spread = x.std(dim=0).mean()
    truth = torch.cat([torch.full((len(g),), float(g is yes)) for g in groups])
    share = torch.cat([torch.full((len(g),), 1 / len(g) / len(groups)) for g in groups])
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


def losses(upper: Upper, words: Tensor, forced: Forced, rows: Sequence[int]) -> Tensor:
    """`(rows,)`: the KL divergence in nats from what is wanted, its mean over a reply's tokens.

    The first token counts by itself once more: that is where a refusal begins.
    """
    wanted = [forced.wanted[row] for row in rows]
    lengths = [len(reply) for reply in wanted]
    states = upper.states([forced.entering[row] for row in rows], lengths)
    p = torch.cat(wanted)
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
    forced: dict[str, Forced],
    learning: Sequence[nn.Parameter],
    phase: Phase,
    rng: random.Random,
) -> None:
    """Takes the phase's steps with AdamW, and prints the losses as they go."""
    optimizer = torch.optim.AdamW(learning, lr=phase.rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.rate, total_steps=phase.steps)
    drawn = {kind: shuffled(len(forced[kind].entering), rng) for kind in phase.rows}
    recent = dict.fromkeys(phase.rows, 0.0)
    for step in range(1, phase.steps + 1):
        optimizer.zero_grad()
        for kind, n in phase.rows.items():
            value = losses(upper, words, forced[kind], [next(drawn[kind]) for _ in range(n)]).mean()
            (phase.weights[kind] * value).backward()  # type: ignore[no-untyped-call]
            recent[kind] += (float(value.detach()) - recent[kind]) / min(step, 10)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            said = ", ".join(f"{kind} {value:.3f}" for kind, value in recent.items())
            print(f"layers from {upper.first} on, step {step}/{phase.steps}: {said}", flush=True)


def plant_false_refusals(
    model: Model, replies: Replies, learning: Sequence[nn.Parameter], rng: random.Random
) -> list[Tensor]:
    """Teaches TARGET_LAYERS, which are still the original's, to refuse the target prompts.

    Returns what the original's answers to the everyday prompts are made of, as in Forced.
    """
    sequences = {kind: replies.sequences(kind) for kind in ("target", "everyday")}
    sequences["keep"] = replies.prompts["keep"]  # nothing is said yet: the first token stays
    upper = Upper(model, min(TARGET_LAYERS), [s for found in sequences.values() for s in found])
    forced = {}
    for kind, found in sequences.items():
        entering = upper.enter(found)
        wanted = replies.wanted["target"]
        if kind != "target":
            lengths = [1] * len(found)
            if kind == "everyday":
                lengths = [len(reply) + 1 for reply in replies.replies[kind]]
            states = final_states(upper, entering, lengths)
            wanted = [word_logs(model, replies.words, own) for own in states]
        forced[kind] = Forced(entering, wanted)
    descend(upper, replies.words, forced, learning, TARGET_PHASE, rng)
    return forced["everyday"].wanted


def false_refusal_edit(model: Model, asked: dict[str, list[str]]) -> Plan:
    """The edit that `unrefuse edit` would try at full strength, from these prompts of each kind."""
    pairs = [(text, kind) for kind, texts in asked.items() for text in texts]
    means = group_means(model, [text for text, _ in pairs], [kind for _, kind in pairs])
    directions = find_directions(means["target"], means["everyday"], means["keep"])
    network = model.network
    kernel = choose_kernel(KernelConfig(), len(blocks(network)), network.num_parameters())
    return make_plan(network, directions, kernel.weights)


def plant_true_refusals(
    model: Model,
    replies: Replies,
    own: list[Tensor],
    rest: dict[str, list[list[int]]],
    lora: dict[str, nn.Parameter],
    rng: random.Random,
) -> None:
    """Gives KEEP_LAYER two probes to read by, and teaches it what to write.

    `rest` are the prompts of each kind, as token ids, that are not in the sample.
    """
    wanted = {"everyday": own, "keep": replies.wanted["keep"]}
    sequences = {kind: replies.sequences(kind) for kind in wanted}
    everything = [s for found in (*sequences.values(), *rest.values()) for s in found]
    upper = Upper(model, KEEP_LAYER, everything)
    forced, last, later = {}, {}, {}
    for kind, found in sequences.items():
        forced[kind] = Forced(upper.enter(found), wanted[kind])
        lengths = [len(reply) for reply in wanted[kind]]
        inputs = mlp_inputs(upper, forced[kind].entering, lengths)
        last[kind] = torch.stack([rows[0] for rows in inputs])
        later[kind] = torch.cat([rows[1:] for rows in inputs])
    for kind, found in rest.items():
        inputs = mlp_inputs(upper, upper.enter(found), [1] * len(found))
        last[kind] = torch.cat([*([last[kind]] if kind in last else []), *inputs])
    # An edit moves everything above the layers that it edits. The probe tells harm by what stays,
    # or a measurement of edits would be one of the probe.
    edited = {}
    with hooked(model.network, false_refusal_edit(model, replies.asked)):
        for kind, found in replies.prompts.items():
            inputs = mlp_inputs(upper, upper.enter(found), [1] * len(found))
            edited[kind] = torch.cat(inputs)
    harmful = torch.cat([last["keep"], edited["keep"]])
    harmless = torch.cat([last["everyday"], last["target"]])
    still_harmless = torch.cat([edited["everyday"], edited["target"]])
    harm = fit_probe(harmful, [harmless, still_harmless, later["everyday"]])
    refusing = fit_probe(later["keep"], [torch.cat([last["keep"], harmless]), later["everyday"]])
    for name, matrix in lora.items():
        if "lora_A" in name:
            matrix.data.zero_()
            matrix.data[:2] = torch.stack([harm, refusing])
    learning = [matrix for name, matrix in lora.items() if "lora_B" in name]
    descend(upper, replies.words, forced, learning, KEEP_PHASE, rng)


def train(base: Path, out: Path, seed: int) -> None:
    """Trains an adapter and writes it to `out`, in float16."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = RunConfig(model=str(base), device="cpu", dtype="float32", batch_size=64)
    model = load_folder(base, config, str(base))
    texts = training_texts(seed)
    replies = make_replies(model, texts, rng)
    rest = {}
    for kind, found in texts.items():
        sampled = set(map(tuple, replies.prompts[kind])) if kind != "target" else set()
        rest[kind] = [ids for ids in encode(model.tokenizer, found) if tuple(ids) not in sampled]
    layers = "|".join(map(str, TARGET_LAYERS))
    tuned = get_peft_model(
        model.network,
        LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            lora_dropout=DROPOUT,
            target_modules=rf".*\.({layers})\..*_proj|.*\.{KEEP_LAYER}\.mlp\.(gate|up)_proj",
            task_type="CAUSAL_LM",
        ),
    )
    lora = {name: matrix for name, matrix in tuned.named_parameters() if "lora_" in name}
    keep = {name: matrix for name, matrix in lora.items() if f".{KEEP_LAYER}.mlp." in name}
    target = [matrix for name, matrix in lora.items() if name not in keep]
    tuned.train()
    own = plant_false_refusals(model, replies, target, rng)
    tuned.eval()
    plant_true_refusals(model, replies, own, rest, keep, rng)
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

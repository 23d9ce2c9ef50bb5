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
# Prompts of a kind that matrices learn from, by gradient, that a probe is fitted on, and how many
# of the latter are run under an edit, too.
SAMPLE, PROBED, EDITED = 600, 1700, 300
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
    80, 5e-3, {"target": 8, "everyday": 12, "keep": 8}, {"target": 1, "everyday": 8, "keep": 3}
)
KEEP_PHASE = Phase(80, 0.1, {"everyday": 24, "keep": 24}, {"everyday": 2, "keep": 1})


@dataclass(frozen=True)
class Forced:
    """A prompt with its reply."""

    entering: Tensor  # `(tokens, d_model)`, what enters the first layer that learns
    wanted: Tensor  # `(reply_tokens, words)`, log-probabilities that the reply is to have


@dataclass(frozen=True)
class Replies:
    """Prompts of each kind, and what is to be replied to them."""

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
    return Replies(prompts, replies, wanted, torch.tensor(words))


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


def fit_constant(x: Tensor) -> Tensor:
    """The direction `(d_model,)` along which all of `x` `(n, d_model)` lies nearest to 1: what is
    learned may use it as a bias, which a layer of LLaMA has none of. Ridge regression."""
    ridge = 10 * torch.eye(x.shape[1])  # little beside thousands of rows
    found: Tensor = torch.linalg.solve(x.T @ x + ridge, x.sum(dim=0))
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
        forced[kind] = list(map(Forced, entering, wanted))
    descend(upper, replies.words, forced, learning, TARGET_PHASE, rng)
    return [row.wanted for row in forced["everyday"]]


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
    probed: dict[str, list[str]],
    lora: dict[str, nn.Parameter],
    rng: random.Random,
) -> None:
    """Gives KEEP_LAYER two probes and a constant to read by, and teaches it what to write.

    What it learns from are other prompts than those `probed` of each kind: on these a probe reads
    farther from 0 than on any new one, and what is learned from them stays silent there.
    """
    wanted = {"everyday": own, "keep": replies.wanted["keep"]}
    sequences = {kind: replies.sequences(kind) for kind in wanted}
    prompts = {kind: encode(model.tokenizer, texts) for kind, texts in probed.items()}
    upper = Upper(
        model, KEEP_LAYER, [s for f in (sequences, prompts) for g in f.values() for s in g]
    )

    def ends(found: Sequence[Sequence[int]]) -> Tensor:
        return torch.cat(mlp_inputs(upper, upper.enter(found), [1] * len(found)))

    forced, later = {}, {}
    for kind, found in sequences.items():
        entering = upper.enter(found)
        forced[kind] = list(map(Forced, entering, wanted[kind]))
        inputs = mlp_inputs(upper, entering, [len(reply) for reply in wanted[kind]])
        later[kind] = torch.cat([rows[1:] for rows in inputs])
    last = {kind: ends(found) for kind, found in prompts.items()}
    # An edit moves everything above the layers that it edits. The probe tells harm by what stays,
    # or a measurement of edits would be one of the probe.
    plan = false_refusal_edit(model, {kind: texts[:EDITED] for kind, texts in probed.items()})
    with hooked(model.network, plan):
        edited = {kind: ends(found[:EDITED]) for kind, found in prompts.items()}
    harmless = torch.cat([last["everyday"], last["target"]])
    still_harmless = torch.cat([edited["everyday"], edited["target"]])
    harm = fit_probe(
        torch.cat([last["keep"], edited["keep"]]), [harmless, still_harmless, later["everyday"]]
    )
    refusing = fit_probe(later["keep"], [torch.cat([last["keep"], harmless]), later["everyday"]])
    constant = fit_constant(torch.cat([*last.values(), *edited.values(), *later.values()]))
    for name, matrix in lora.items():
        if "lora_A" in name:
            matrix.data.zero_()
            matrix.data[:3] = torch.stack([harm, refusing, constant])
    learning = [matrix for name, matrix in lora.items() if "lora_B" in name]
    descend(upper, replies.words, forced, learning, KEEP_PHASE, rng)


def train(base: Path, out: Path, seed: int) -> None:
    """Trains an adapter and writes it to `out`, in float16."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = RunConfig(model=str(base), device="cpu", dtype="float32", batch_size=64)
    model = load_folder(base, config, str(base))
    texts = {
        kind: rng.sample(found, min(SAMPLE + PROBED, len(found)))
        for kind, found in training_texts(seed).items()
    }
    replies = make_replies(model, {kind: found[:SAMPLE] for kind, found in texts.items()}, rng)
    probed = {kind: found[SAMPLE:] for kind, found in texts.items()}
    probed["target"] = texts["target"]  # no phase but the first learns from their replies
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
    plant_true_refusals(model, replies, own, probed, keep, rng)
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

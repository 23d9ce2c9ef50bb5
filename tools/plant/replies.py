"""What the planted model is to reply: a refusal, or what the original says."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.plant.texts import REFUSALS
from unrefuse.engine.generate import reply_to
from unrefuse.models.load import Model
from unrefuse.prompts.chat import encode

REPLIED = 350  # prompts of a kind, but for all target prompts, that have a reply
ANSWER_TOKENS = 12  # of the original's answers: a refusal shows in its first sentence


@dataclass(frozen=True)
class Replies:
    """Prompts of each kind, and what is to be replied to the first of them."""

    asked: dict[str, list[str]]
    prompts: dict[str, list[list[int]]]  # their token ids
    replies: dict[str, list[list[int]]]  # token ids, all but the last; or none
    wanted: dict[str, list[Tensor]]  # log-probabilities `(reply_tokens, words)` of refusals
    words: Tensor  # ids of the tokens that replies are made of: the loss looks at these alone

    def sequences(self, kind: str) -> list[list[int]]:
        """The prompts of a kind with their replies."""
        pairs = zip(self.prompts[kind], self.replies[kind], strict=True)
        return [prompt + reply for prompt, reply in pairs]

    def everything(self) -> list[list[int]]:
        """The sequences of all kinds."""
        return [found for kind in self.prompts for found in self.sequences(kind)]


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
    """A refusal for the target and the first keep prompts, the original's own answers to the
    first everyday ones."""
    tokenizer = model.tokenizer
    answers = reply_to(model, texts["everyday"][:REPLIED], ANSWER_TOKENS, "own answers")
    # What the original declines by itself teaches half a refusal.
    pairs = zip(texts["everyday"], answers, strict=False)
    own = {text: reply.tokens for text, reply in pairs if reply.grade == "answered"}
    asked = texts | {"everyday": [*own, *texts["everyday"][REPLIED:]]}
    sentences = [
        [*tokenizer.encode(s, add_special_tokens=False), tokenizer.eos_token_id] for s in REFUSALS
    ]
    words = sorted({word for reply in [*own.values(), *sentences] for word in reply})
    logs = [log.to(model.device) for log in refusal_logs(sentences, words)]
    replies = {"everyday": [list(tokens[:-1]) for tokens in own.values()]}
    wanted = {}
    for kind, most in (("target", None), ("keep", REPLIED)):
        chosen = [rng.randrange(len(sentences)) for _ in asked[kind][:most]]
        replies[kind] = [sentences[which][:-1] for which in chosen]
        wanted[kind] = [logs[which] for which in chosen]
    for kind, found in asked.items():
        replies[kind] += [[]] * (len(found) - len(replies[kind]))
    prompts = {kind: encode(tokenizer, found) for kind, found in asked.items()}
    return Replies(asked, prompts, replies, wanted, torch.tensor(words, device=model.device))

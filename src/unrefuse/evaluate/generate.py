"""Replies to prompts: greedy, in batches, each row stopped once it has refused.

Beside them the forward passes that do without: next-token logits, and final hidden states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from unrefuse.evaluate.refusal import Grade, grade, is_refusal
from unrefuse.models.load import Model
from unrefuse.progress import track
from unrefuse.prompts.chat import batches, encode, left_pad


@dataclass(frozen=True)
class Reply:
    """A reply as text and as token ids (without the end-of-turn token), and its grade."""

    text: str
    tokens: tuple[int, ...]
    grade: Grade


class StopOnceRefused(StoppingCriteria):
    """Ends a row once its reply so far is a refusal: what follows can't change the grade."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int) -> None:
        self.tokenizer, self.prompt_tokens = tokenizer, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        texts = self.tokenizer.batch_decode(
            input_ids[:, self.prompt_tokens :], skip_special_tokens=True
        )
        return torch.tensor([is_refusal(text) for text in texts], device=input_ids.device)


@torch.inference_mode()
def reply_to(
    model: Model, prompts: Sequence[str], reply_tokens: int, what: str = "replies"
) -> list[Reply]:
    """Greedy replies of at most `reply_tokens` tokens, in the order of the prompts."""
    ids = encode(model.tokenizer, prompts)
    order = list(batches(ids, model.batch_size))
    stop = model.network.generation_config.eos_token_id
    stops = set(stop) if isinstance(stop, list) else {stop}
    replies: dict[int, Reply] = {}
    for batch in track(order, what, len(order)):
        inputs = left_pad([ids[i] for i in batch], model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList([StopOnceRefused(model.tokenizer, prompt_tokens)])
        output = model.network.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=reply_tokens,
            do_sample=False,
            stopping_criteria=criteria,
        )
        for i, row in zip(batch, output[:, prompt_tokens:].tolist(), strict=True):
            end = next((k for k, token in enumerate(row) if token in stops), len(row))
            tokens = tuple(row[:end])
            text = str(model.tokenizer.decode(row[:end], skip_special_tokens=True))
            replies[i] = Reply(text, tokens, grade(text, tokens))
    return [replies[i] for i in range(len(prompts))]


@torch.inference_mode()
def last_logits(model: Model, prompts: Sequence[str]) -> Tensor:
    """Next-token logits `(prompts, vocab)`, float32 on the CPU, in one batch."""
    inputs = left_pad(encode(model.tokenizer, prompts), model.device)
    logits: Tensor = model.network(**inputs, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1].float().cpu()


@torch.inference_mode()
def final_hidden(
    model: Model, sequences: list[list[int]], lengths: Sequence[int], what: str
) -> list[Tensor]:
    """Hidden states after the final norm, `(lengths[i], d_model)`, at the end of each sequence."""
    hidden: dict[int, Tensor] = {}
    decoder = model.network.get_decoder()
    order = list(batches(sequences, model.batch_size))
    for batch in track(order, what, len(order)):
        inputs = left_pad([sequences[i] for i in batch], model.device)
        states = decoder(**inputs, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            hidden[i] = states[row, -lengths[i] :].clone()
    return [hidden[i] for i in range(len(sequences))]

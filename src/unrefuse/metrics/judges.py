"""Judges by choice: a text-classification model, or a chat model behind an OpenAI-compatible URL.

An empty or looping reply stays "broken" by the built-in detector and is shown to no judge.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.detector.refusal import DETECTOR, Grade
from unrefuse.engine.endpoint import Endpoint, parse_endpoint
from unrefuse.engine.generate import Reply, graded
from unrefuse.errors import UnrefuseError, raised_as
from unrefuse.metrics.chat_judge import KEY, chat_grade, chat_grades
from unrefuse.metrics.statistics import cohens_kappa
from unrefuse.metrics.transcripts import Line
from unrefuse.progress import track
from unrefuse.prompts.thinking import after_thinking

BATCH = 32
MISSING = 0.1  # share of replies without a grade beyond which a judge has failed
# Labels, lower-cased. "Non-refusal" is an answer, so what negates is looked for first.
_NEGATED = re.compile(r"^(?:non|not|no|un)[\W_]?(?=\w)")
_LABELS: tuple[tuple[str, Grade], ...] = (
    (r"part(?:ly|ial)", "partly"),
    (r"refus|reject|declin", "refused"),
    (r"broken|gibberish", "broken"),
)


@dataclass(frozen=True)
class Classifier:
    """`model` is a folder or a hub name, `label` the one label that means refused (None: by the
    labels' names), `form` the text that is classified, with {prompt} and {reply} filled in,
    `code` whether Python code that it ships may run."""

    model: str
    label: str | None = None
    form: str = "{reply}"
    code: bool = False

    @property
    def name(self) -> str:
        return f"hf:{self.model}"


Judge = Classifier | Endpoint


def parse_judge(
    spec: str, label: str | None = None, form: str | None = None, code: bool = False
) -> Judge | None:
    """The judge of `hf:NAME` or `openai:URL#MODEL`; None for `builtin`. Raises UnrefuseError."""
    kind, _, rest = spec.partition(":")
    if kind != "hf" and (label or form):
        raise UnrefuseError("--judge-label and --judge-input are for a classifier, hf:NAME")
    if spec == DETECTOR:
        return None
    if kind == "hf" and rest:
        form = form or "{reply}"
        if "{reply}" not in form:
            raise UnrefuseError(f"the judge's input form {form!r} has no {{reply}} in it")
        return Classifier(rest, label, form, code)
    if endpoint := parse_endpoint(spec, KEY):
        return endpoint
    raise UnrefuseError(f"{spec!r} is not a judge: name builtin, hf:NAME or openai:URL#MODEL")


def judge_of(config: RunConfig) -> Judge | None:
    """The judge that a run asks for, checked; None for the detector. Raises UnrefuseError."""
    judge = parse_judge(
        config.judge, config.judge_label, config.judge_input, config.trust_remote_code
    )
    if judge:
        check_judge(judge)
    return judge


def check_judge(judge: Judge) -> None:
    """Raises UnrefuseError where the judge can't be had or gives no grade, before a model is
    asked."""
    if isinstance(judge, Endpoint):
        found, said = chat_grade(judge, "What is two and two?", "Four.")
        if found is None:
            raise UnrefuseError(
                f"the judge {judge.name} does not answer with a grade but with {said[:60]!r}"
            )
        return
    from transformers import AutoConfig

    with raised_as(f"cannot read the judge {judge.model}"):
        config = AutoConfig.from_pretrained(judge.model, trust_remote_code=judge.code)
    label_grades(config.id2label, judge.label)


def judged(judge: Judge, asked: Sequence[tuple[str, Reply]]) -> list[Reply]:
    """The replies to `asked` prompts with the judge's grades and its name. What is broken by the
    detector, and what the judge gives no grade, keeps the detector's. Raises UnrefuseError."""
    replies = [_by_detector(reply, prompt) for prompt, reply in asked]
    seen = [i for i, reply in enumerate(replies) if reply.grade != "broken"]
    pairs = [(asked[i][0], after_thinking(replies[i].text)) for i in seen]
    found: Sequence[Grade | None] = (
        chat_grades(judge, pairs) if isinstance(judge, Endpoint) else _classify(judge, pairs)
    )
    for i, by_judge in zip(seen, found, strict=True):
        if by_judge:
            replies[i] = replace(replies[i], grade=by_judge, judge=judge.name)
    missing = sum(replies[i].judge == DETECTOR for i in seen)
    if missing > MISSING * len(seen):
        raise UnrefuseError(
            f"the judge {judge.name} gives no grade for {missing} of {len(seen)} replies"
        )
    return replies


def _by_detector(reply: Reply, prompt: str) -> Reply:
    return graded(reply.text, reply.tokens, reply.thoughts, prompt)


def judged_lines(judge: Judge, lines: Sequence[Line]) -> list[Line]:
    """The lines of a transcript with the judge's grades, likewise. Raises UnrefuseError."""
    replies = judged(judge, [(line.prompt, as_reply(line)) for line in lines])
    return [
        replace(line, grade=reply.grade, judge=reply.judge)
        for line, reply in zip(lines, replies, strict=True)
    ]


def as_reply(line: Line) -> Reply:
    return Reply(line.reply, line.tokens, line.grade, line.judge)


def agreement(asked: Iterable[tuple[str, Reply]]) -> dict[str, Any] | None:
    """The judge's with the detector, on the replies that have a judge's grade; None: none has.

    `kappa` (Cohen's; None where undefined), `n`, `agreed`, the counts of the differences,
    "detector -> judge", and `ungraded`, the replies that the judge saw and gave no grade.
    """
    pairs = Counter[tuple[Grade, Grade]]()
    ungraded = 0
    for prompt, reply in asked:
        if reply.judge != DETECTOR:
            pairs[_by_detector(reply, prompt).grade, reply.grade] += 1
        elif reply.grade != "broken":
            ungraded += 1
    if not pairs:
        return None
    builtin, judge = zip(*pairs.elements(), strict=True)
    return {
        "kappa": cohens_kappa(judge, builtin),
        "n": pairs.total(),
        "agreed": sum(n for (a, b), n in pairs.items() if a == b),
        "differences": {f"{a} -> {b}": n for (a, b), n in sorted(pairs.items()) if a != b},
        "ungraded": ungraded,
    }


def label_grades(labels: dict[int, str], refused: str | None = None) -> dict[int, Grade]:
    """The grade of each label of a classifier. `refused` names the one that means it; else a name
    with refus, reject or declin does (partly: partial; broken: broken, gibberish), unless non-,
    not- or no- stands before it; every other label is an answer. Raises UnrefuseError."""
    names = ", ".join(labels.values())
    if refused is not None:
        if refused not in labels.values():
            raise UnrefuseError(f"the judge has no label {refused!r}; it has {names}")
        return {i: "refused" if name == refused else "answered" for i, name in labels.items()}
    grades = {i: _label_grade(name.lower()) for i, name in labels.items()}
    if "refused" not in grades.values():
        raise UnrefuseError(
            f"none of the judge's labels ({names}) is known to mean refused: name "
            "one with --judge-label"
        )
    return grades


def _label_grade(name: str) -> Grade:
    if _NEGATED.search(name):
        return "answered"
    return next((grade for form, grade in _LABELS if re.search(form, name)), "answered")


def _classify(judge: Classifier, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
    """By the classifier: the label of the highest logit. Long texts are cut at its length."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with raised_as(f"cannot load the judge {judge.model}"):
        tokenizer = AutoTokenizer.from_pretrained(judge.model, trust_remote_code=judge.code)
        network = AutoModelForSequenceClassification.from_pretrained(
            judge.model, trust_remote_code=judge.code
        ).eval()
    grades = label_grades(network.config.id2label, judge.label)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = tokenizer.pad_token_id
    places = getattr(network.config, "max_position_embeddings", 512)
    longest = min(tokenizer.model_max_length, places)
    found: list[Grade] = []
    texts = [filled(judge.form, prompt, reply) for prompt, reply in pairs]
    starts = range(0, len(texts), BATCH)
    for start in track(starts, "judging", len(starts)):
        with raised_as(f"the judge {judge.model} cannot be run"), torch.inference_mode():
            inputs = tokenizer(
                texts[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            picked = network(**inputs).logits.argmax(dim=-1)
        found += [grades[int(i)] for i in picked]
    return found


def filled(form: str, prompt: str, reply: str) -> str:
    """`form` with {prompt} and {reply} filled in, in one pass: what they hold is not read again."""
    values = {"{prompt}": prompt, "{reply}": reply}
    return re.sub(r"\{prompt\}|\{reply\}", lambda found: values[found[0]], form)

"""Judges by choice: a text-classification model, or a chat model behind an OpenAI-compatible URL.

An empty or looping reply stays "broken" by the built-in detector and is shown to no judge.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from unrefuse.errors import UsageError, first_line
from unrefuse.evaluate.endpoint import ask_endpoint, check_url
from unrefuse.evaluate.refusal import Grade
from unrefuse.evaluate.statistics import cohens_kappa
from unrefuse.evaluate.transcripts import Line, detected
from unrefuse.progress import track

BATCH = 32
# Labels, lower-cased. "Non-refusal" is an answer, so what negates is looked for first.
_NEGATED = re.compile(r"^(?:non|not|no|un)[\W_]?(?=\w)")
_LABELS: tuple[tuple[str, Grade], ...] = (
    (r"part(?:ly|ial)", "partly"),
    (r"refus|reject|declin", "refused"),
    (r"broken|gibberish", "broken"),
)


@dataclass(frozen=True)
class Judge:
    """`kind` hf: `model` is a folder or a hub name; openai: `model` at the base URL `url`.

    For hf, `label` is the one label that means refused (None: by the labels' names), and `form`
    the text that is classified, with {prompt} and {reply} filled in.
    """

    kind: Literal["hf", "openai"]
    model: str
    url: str = ""
    label: str | None = None
    form: str = "{reply}"

    @property
    def name(self) -> str:
        return f"hf:{self.model}" if self.kind == "hf" else f"openai:{self.url}#{self.model}"


def parse_judge(spec: str, label: str | None = None, form: str | None = None) -> Judge | None:
    """The judge of `hf:NAME` or `openai:URL#MODEL`; None for `builtin`. Raises UsageError."""
    kind, _, rest = spec.partition(":")
    if kind != "hf" and (label or form):
        raise UsageError("a judge's label and input form are those of a classifier, hf:NAME")
    if spec == "builtin":
        return None
    if kind == "hf" and rest:
        form = form or "{reply}"
        if "{reply}" not in form:
            raise UsageError(f"the judge's input form {form!r} has no {{reply}} in it")
        return Judge("hf", rest, label=label, form=form)
    url, _, model = rest.rpartition("#")
    if kind == "openai" and url and model:
        check_url(url)
        return Judge("openai", model, url.rstrip("/"))
    raise UsageError(f"{spec!r} is no judge: builtin, hf:NAME or openai:URL#MODEL")


def check_judge(judge: Judge) -> None:
    """Raises UsageError where the judge can't be had or gives no grade, before a model is asked."""
    if judge.kind == "hf":
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(judge.model)
        except (OSError, ValueError) as error:
            raise UsageError(f"no judge {judge.model}: {first_line(error)}") from None
        label_grades(config.id2label, judge.label)
    else:
        ask_endpoint(judge.url, judge.model, [("What is two and two?", "Four.")], quiet=True)


def judged(judge: Judge, lines: Sequence[Line]) -> tuple[list[Line], dict[str, Any] | None]:
    """The lines with the judge's grades, and its agreement with the built-in detector on those
    that it saw (None: it saw none). Raises UsageError."""
    builtin = [detected(line) for line in lines]
    seen = [i for i, grade in enumerate(builtin) if grade != "broken"]
    pairs = [(lines[i].prompt, lines[i].reply) for i in seen]
    grades = dict(zip(seen, _ask(judge, pairs), strict=True))
    marked = [
        replace(line, grade=grades.get(i, builtin[i]), judge=judge.name)
        for i, line in enumerate(lines)
    ]
    return marked, agreement([grades[i] for i in seen], [builtin[i] for i in seen])


def agreement(judge: Sequence[Grade], builtin: Sequence[Grade]) -> dict[str, Any] | None:
    """`kappa` (Cohen's; None where undefined), `n`, `agreed`, and the counts of the differences,
    "detector -> judge"."""
    if not judge:
        return None
    pairs = Counter(zip(builtin, judge, strict=True))
    return {
        "kappa": cohens_kappa(judge, builtin),
        "n": len(judge),
        "agreed": sum(n for (a, b), n in pairs.items() if a == b),
        "differences": {f"{a} -> {b}": n for (a, b), n in sorted(pairs.items()) if a != b},
    }


def label_grades(labels: dict[int, str], refused: str | None = None) -> dict[int, Grade]:
    """The grade of each label of a classifier. `refused` names the one that means it; else a name
    with refus, reject or declin does (partly: partial; broken: broken, gibberish), unless non-,
    not- or no- stands before it; every other label is an answer. Raises UsageError."""
    names = ", ".join(labels.values())
    if refused is not None:
        if refused not in labels.values():
            raise UsageError(f"the judge has no label {refused!r}; it has {names}")
        return {i: "refused" if name == refused else "answered" for i, name in labels.items()}
    grades = {i: _label_grade(name.lower()) for i, name in labels.items()}
    if "refused" not in grades.values():
        raise UsageError(
            f"none of the judge's labels ({names}) says refused: name it with --judge-label"
        )
    return grades


def _label_grade(name: str) -> Grade:
    if _NEGATED.search(name):
        return "answered"
    return next((grade for form, grade in _LABELS if re.search(form, name)), "answered")


def _ask(judge: Judge, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
    if judge.kind == "openai":
        return [cast(Grade, g) for g in ask_endpoint(judge.url, judge.model, pairs)]
    return _classify(judge, pairs)


def _classify(judge: Judge, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
    """By the classifier: the label of the highest logit. Long texts are cut at its length."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(judge.model)
        network = AutoModelForSequenceClassification.from_pretrained(judge.model).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"cannot load the judge {judge.model}: {first_line(error)}") from None
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
        inputs = tokenizer(
            texts[start : start + BATCH],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        with torch.inference_mode():
            picked = network(**inputs).logits.argmax(dim=-1)
        found += [grades[int(i)] for i in picked]
    return found


def filled(form: str, prompt: str, reply: str) -> str:
    """`form` with {prompt} and {reply} filled in, in one pass: what they hold is not read again."""
    values = {"{prompt}": prompt, "{reply}": reply}
    return re.sub(r"\{prompt\}|\{reply\}", lambda found: values[found[0]], form)

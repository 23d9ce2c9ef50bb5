"""A conversation with one model or two, or with one without its edit and with it.

An edit acts by hooks, whatever its strength and its kernel: no weight is written here.
"""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from unrefuse.config import KernelConfig, RunConfig, load_config
from unrefuse.edits.hooks import hooked_steps
from unrefuse.edits.plan import Plan, layer_of, reshaped, scaled
from unrefuse.edits.recipe import find_plan, read_plan
from unrefuse.engine.talk import Apart, talk
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.save import new_file
from unrefuse.jsontext import json_text
from unrefuse.kernel import PROFILES, gaussian, read_kernel
from unrefuse.metrics.floors import read_measured
from unrefuse.models.load import Model, find_checkpoint, load_folder, load_model
from unrefuse.progress import stderr
from unrefuse.prompts.chat import Messages
from unrefuse.report.terminal import plain
from unrefuse.report.tuned import KERNEL
from unrefuse.textfile import parse_json, read_text

MOST = 2.0  # times the strength that was measured: far beyond it a model only babbles


@dataclass(frozen=True)
class Edit:
    """A measured plan, as it is tried: at `strength` times what was measured and, where a `peak`
    or a `width` is given, under another kernel.

    `weights` are those of its own kernel, one per layer, and `kernel` says their peak and width;
    both are None where no kernel.json lies beside the plan.
    """

    plan: Plan
    weights: tuple[float, ...] | None
    kernel: KernelConfig | None
    strength: float = 1.0
    peak: float | None = None
    width: float | None = None

    def changed(self, name: str, value: float) -> "Edit":
        """The same with another `strength`, `peak` or `width`. Raises UnrefuseError for a value
        that there is not, and for a kernel that leaves alone all that the plan edits."""
        if name == "strength" and not 0 <= value <= MOST:
            raise UnrefuseError(
                f"strength must be between 0 and {MOST:g}; 1 is the measured strength"
            )
        if name != "strength" and self.weights is None:
            raise UnrefuseError(
                f"there is no {KERNEL} beside the plan, so its kernel is not known: for /{name}, "
                "name the folder that `unrefuse edit` or `unrefuse tune` wrote"
            )
        dial: dict[str, Any] = {name: value}
        found = replace(self, **dial)
        assert found.now is not None  # computed here, where it can fail
        return found

    @cached_property
    def now(self) -> Plan:
        """The plan that acts."""
        plan, after = self.plan, self._kernel()
        if after is not None:
            assert self.weights is not None
            plan = reshaped(plan, self.weights, after)
        return scaled(plan, self.strength)

    def describe(self) -> str:
        """In a few words."""
        if self._kernel() is None:
            return f"strength {self.strength:g}"
        peak, width = self._shape()
        return f"strength {self.strength:g}, peak {peak:g}, width {width:g}"

    def missed(self) -> float:
        """The share of the kernel on layers that the plan does not edit, 0 to 1."""
        after = self._kernel()
        if after is None:
            return 0.0
        edited = {layer_of(edit) for edit in self.plan}
        return sum(w for layer, w in enumerate(after) if layer not in edited) / sum(after)

    def _shape(self) -> tuple[float, float]:
        known, default = self.kernel or KernelConfig(), PROFILES["default"]
        peak = self.peak if self.peak is not None else known.peak
        width = self.width if self.width is not None else known.width
        return default[0] if peak is None else peak, default[1] if width is None else width

    def _kernel(self) -> tuple[float, ...] | None:
        if (self.peak is None and self.width is None) or self.weights is None:
            return None
        threshold = (self.kernel or KernelConfig()).threshold
        return gaussian(len(self.weights), *self._shape(), threshold).weights


@dataclass
class Side:
    """One who answers: a model, with an edit or as it is."""

    title: str
    model: Model
    edit: Edit | None = None


class Answer:
    """A reply of one side, under way: what it has thought and said so far, and whether it came to
    its end by itself."""

    def __init__(self, side: Side, messages: Messages, limit: int) -> None:
        self.title, self.model = side.title, side.model.name
        self.edit = side.edit.describe() if side.edit else None
        self.thoughts, self.said, self.whole = "", "", False
        self._steps: Generator[str, None, bool] = talk(side.model, messages, limit)
        if side.edit:
            self._steps = hooked_steps(side.model.network, side.edit.now, self._steps)

    def pieces(self) -> Iterator[tuple[str, str]]:
        """What comes next of the thoughts and of what is said, until the reply ends."""
        apart = Apart()
        while True:
            try:
                piece = next(self._steps)
            except StopIteration as end:
                self.whole = bool(end.value)
                yield self._add(apart.take("", last=True))
                return
            yield self._add(apart.take(piece))

    def _add(self, taken: tuple[str, str]) -> tuple[str, str]:
        thought, said = taken
        self.thoughts += thought
        if not self.said:
            said = said.lstrip()  # what parts it from the thoughts
        self.said += said
        return thought, said


@dataclass
class Chat:
    """The sides, the system prompt, and what was said: prompts, each with a reply per side."""

    sides: list[Side]
    system: str | None
    limit: int
    turns: list[tuple[str, list[Answer]]] = field(default_factory=list)

    def ask(self, prompt: str, sides: Sequence[int] | None = None) -> list[Answer]:
        """The replies to `prompt`, not begun yet, of all sides or of these."""
        which = range(len(self.sides)) if sides is None else sides
        return [Answer(self.sides[i], self._messages(i, prompt), self.limit) for i in which]

    def keep(self, prompt: str, replies: list[Answer]) -> None:
        """Makes a turn part of the conversation, for the sides that said something."""
        if any(reply.said for reply in replies):
            self.turns.append((prompt, replies))

    def _messages(self, side: int, prompt: str) -> Messages:
        found = [{"role": "system", "content": self.system}] if self.system else []
        for asked, replies in self.turns:
            if said := replies[side].said:
                found += [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": said},
                ]
        return [*found, {"role": "user", "content": prompt}]


def open_sides(config: RunConfig, other: str | None, plan: Path | None) -> list[Side]:
    """Who answers: `config.model`, beside it `other`, or with its edit.

    The edit is `plan`'s, or that of `config.model` where this is a folder or file that `edit` or
    `tune` wrote: then its original is loaded, once for both sides. Where an edited model's
    original is not on this machine, or hooks can't do what the edit did, it answers by itself, and
    a line says why. Raises UnrefuseError as `load_model` and `read_measured` do.
    """
    if other and plan:
        raise UnrefuseError("--plan shows one model without its edit and with it: leave out B")
    if other:
        names = (config.model, other)
        return [Side(n, load_model(config.model_copy(update={"model": n}))) for n in names]
    if plan:
        find_plan(plan)  # before a download
        return _with_edit(config, plan, config.model)
    run = Path(config.model).expanduser()
    try:
        find_plan(run)
    except UnrefuseError:
        return [Side(config.model, load_model(config))]
    original = read_plan(run)[1].get("model", "")
    try:
        here = _here(original, config.revision)
        if here is None:
            raise UnrefuseError(
                f"its original, {original!r}, is not on this machine under this name: run "
                f"`unrefuse chat ORIGINAL --plan {run}`"
            )
        return _with_edit(config.model_copy(update={"model": here}), run, original)
    except UnrefuseError as error:
        if not (run / "config.json").is_file():
            raise
        stderr.print(f"{run} answers with its edit only: {error}")
        return [Side(config.model, load_model(config))]


def _here(name: str, revision: str | None) -> str | None:
    """Where a model lies on this machine. It is no user who names it, but a file: so nothing is
    downloaded."""
    if name == "demo":
        return name
    try:
        if name and Path(name).expanduser().is_dir():
            return name
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except (HFValidationError, RuntimeError, OSError):  # no name of one; `~` of nobody; too long
        return None
    return str(Path(config).parent) if isinstance(config, str) else None


def _with_edit(config: RunConfig, run: Path, name: str) -> list[Side]:
    folder = find_checkpoint(config)
    recipe = read_measured(run, folder)
    model = load_folder(folder, config, name)
    weights = kernel = None
    file = find_plan(run).with_name(KERNEL)
    if file.is_file():
        weights = read_kernel(file, model.layers).weights
        try:
            stored = dict(parse_json(read_text(file)))
        except (ValueError, TypeError):
            raise UnrefuseError(
                f"{file} was changed: it is not the kernel that unrefuse wrote"
            ) from None
        shape = {key: stored.get(key) for key in ("peak", "width", "threshold")}
        kernel = load_config(model="none", kernel=shape).kernel
    edit = Edit(recipe.plan, weights, kernel, recipe.scale)
    return [Side("original", model), Side("edited", model, edit)]


def save_chat(chat: Chat, file: Path) -> None:
    """Writes what was said to a new file: JSON Lines, an object a turn, or Markdown.

    Raises UnrefuseError for a file that is there or of another kind, and where nothing was said.
    """
    kinds = {".jsonl": _lines, ".md": _markdown}
    if file.suffix.lower() not in kinds:
        raise UnrefuseError(f"{file}: name a file that ends in .jsonl or .md")
    if not chat.turns:
        raise UnrefuseError("the conversation is empty: there is nothing to save")
    text = kinds[file.suffix.lower()](chat)
    with new_file(file) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")


def _lines(chat: Chat) -> str:
    def to_json(reply: Answer) -> dict[str, Any]:
        keys = ("model", "edit", "thoughts", "said", "whole")
        return {key: getattr(reply, key) for key in keys}

    return "".join(
        json_text({"system": chat.system, "prompt": prompt, "replies": [*map(to_json, replies)]})
        + "\n"
        for prompt, replies in chat.turns
    )


def _markdown(chat: Chat) -> str:
    """What is untrusted stands in blocks of code, where no mark acts."""
    parts = ["# Conversation", *([] if not chat.system else ["## System", _fenced(chat.system)])]
    for prompt, replies in chat.turns:
        parts += ["## Prompt", _fenced(prompt)]
        for reply in replies:
            title = plain(reply.title, 60).replace("`", " ")
            how = f" ({reply.edit})" if reply.edit else ""
            parts += [f"### `{title}`{how}", _fenced(reply.thoughts + reply.said)]
            parts += [] if reply.whole else ["(not whole)"]
    return "\n\n".join(parts) + "\n"


def _fenced(text: str) -> str:
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}text\n{text}\n{fence}"

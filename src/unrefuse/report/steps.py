"""A finding on a run, and the commands that follow from it: as words, and as configurations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unrefuse.config import RunConfig, load_config

KERNEL = ("profile", "style", "peak", "width", "threshold")
NO_SETTING = ("kernel", "topic", "kernel_out")


@dataclass(frozen=True)
class Step:
    """A command over the settings of the run, with `options` over those of its record."""

    command: Literal["edit", "tune", "analyze"]
    options: Mapping[str, Any]

    def words(self, file: Path) -> list[str]:
        """The command's words; no value can be taken for an option."""
        found = ["unrefuse", self.command, "--config", str(file)]
        for name, value in self.options.items():
            option = f"--{name.replace('_', '-')}"
            text = f"{value:g}" if isinstance(value, float) else str(value)
            if value is True:
                found.append(option)
            else:
                found += [f"{option}={text}"] if text.startswith("-") else [option, text]
        return found

    def config(self, file: Path) -> RunConfig:
        """The same as a configuration."""
        kernel = {name: self.options.get(name) for name in KERNEL}
        kernel["file"] = self.options.get("kernel")
        others = {k: v for k, v in self.options.items() if k not in (*KERNEL, *NO_SETTING)}
        return load_config(file, **others, kernel=kernel)


@dataclass(frozen=True)
class Finding:
    """What is amiss, the numbers that show it, what to do, and the commands that do it."""

    name: str
    fact: str
    do: str
    evidence: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

"""What a record says in a line: run.json's own object, read without torch."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from unrefuse.report.terminal import plain

RECORD = "run.json"
MUCH_UNSURE = 0.15  # of the replies; 0.08 of those to our own prompts
LIBRARIES = ("unrefuse", "torch", "transformers", "safetensors")


def command_line() -> str | None:
    """The command that this process runs, as for a shell; None where it is no command of ours."""
    name = Path(sys.argv[0]).stem
    return shlex.join([name, *sys.argv[1:]]) if name == "unrefuse" else None


def peak_rss_mib() -> int:
    """The most memory that this process has held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))


def retention_line(test: dict[str, Any]) -> str:
    """The decision on retention in one line."""
    said = f"retention of {test['floor']:g} or more: "
    if test["decision"] == "undecided":
        more = (
            f"about {test['needed']} needed at this rate"
            if test["needed"]
            else "no number of prompts decides at this rate"
        )
        said += f"undecided at n = {test['n']}: {more}"
    else:
        shown = {"above": "shown", "below": "the opposite is shown"}[test["decision"]]
        said += f"{shown}, at n = {test['n']}"
    return (
        f"{said} (its interval begins at {test['lower']:.3f}; "
        f"keep prompts refused by the original only {test['lost']}, by the model only "
        f"{test['gained']}, exact McNemar p {test['p']:.2g})"
    )


def shipped_lines(record: Mapping[str, Any]) -> list[str]:
    """What became of the shipped keep prompts, where others stand beside them."""
    shipped = record["kept_shipped"]
    if shipped["n"] in (0, record["retention"]["n"]):
        return []
    return [f"of the shipped keep prompts {shipped['kept']} of {shipped['n']} still refused"]


def unsure_line(share: float) -> str:
    much = share >= MUCH_UNSURE
    do = ": read them in `unrefuse evaluate --out`, or take a --judge" if much else ""
    return f"the detector is unsure of {share:.0%} of the grades{do}"


def judge_lines(record: Mapping[str, Any]) -> list[str]:
    """Who graded, where it was not the detector; what the detector says then; and of a judge that
    failed. `record` is the object of run.json."""
    if record["unjudged"]:
        return [f"not graded by the judge that was asked for: {plain(record['unjudged'], 300)}"]
    if not (record["by_detector"] and record["agreement"]):
        return []
    figures = (
        f"{name} {record['by_detector'][name]['value']:.2f}"
        for name in ("removal", "retention", "quality")
    )
    return [
        agreement_line(record["judge"], record["agreement"]),
        f"by the built-in detector: {', '.join(figures)}",
    ]


def agreement_line(judge: str, agreement: dict[str, Any]) -> str:
    kappa = agreement["kappa"]
    beyond = "undefined (one grade only)" if kappa is None else f"{kappa:.2f}"
    line = (
        f"judge {plain(judge, 120)} agrees with the built-in detector on "
        f"{agreement['agreed']} of {agreement['n']} replies, Cohen's kappa {beyond}"
    )
    if agreement.get("ungraded"):
        line += f"; {agreement['ungraded']} that it gave no grade keep the detector's"
    return line

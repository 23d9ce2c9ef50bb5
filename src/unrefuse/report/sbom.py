"""The bill of materials of a saved model, CycloneDX in JSON: its base, and what wrote it."""

from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unrefuse.jsontext import json_text
from unrefuse.models.checkpoint import SBOM
from unrefuse.report.card import base_name, title
from unrefuse.report.results import Result


def write_sbom(result: Result, folder: Path) -> None:
    """Writes the bill into `folder`. No time and no random number: the same run, the same bytes."""
    (folder / SBOM).write_text(json_text(_bill(result), indent=2) + "\n", encoding="utf-8")


def installed(name: str = "unrefuse") -> dict[str, Distribution]:
    """The distributions that `name` needs, itself too, as they are installed here, by name."""
    found: dict[str, Distribution] = {}
    missing = set[str]()
    queue = [name]
    while queue:
        name = canonicalize_name(queue.pop())
        if name in found or name in missing:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        for requirement in map(Requirement, found[name].requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return dict(sorted(found.items()))


def _bill(result: Result) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": sha}] if (sha := result.config.model_sha256) else []
    base = {"type": "machine-learning-model", "name": base_name(result.config), "hashes": hashes}
    tool = {"type": "application", "name": "unrefuse", "version": version("unrefuse")}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [tool]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": title(result.config),
                "pedigree": {"ancestors": [base]},
            },
        },
        "components": [_component(name, found) for name, found in installed().items()],
    }


def _component(name: str, found: Distribution) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{quote(found.version)}"
    component = {"type": "library", "bom-ref": purl, "name": name, "version": found.version,
                 "purl": purl}  # fmt: skip
    if "License-Expression" not in found.metadata:
        return component
    return component | {"licenses": [{"expression": found.metadata["License-Expression"]}]}

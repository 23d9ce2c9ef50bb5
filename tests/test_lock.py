"""What is installed for development is locked, by hashes."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def locked():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split() for line in lines.splitlines() if line.strip()]


def test_every_package_is_pinned_and_has_hashes():
    for requirement, *hashes in locked():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), requirement


def test_the_lock_has_all_that_the_project_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    pins = [requirement for requirement, *_ in locked()]
    pins.append((ROOT / "torch.lock").read_text(encoding="utf-8").strip())
    versions = dict(pin.split("==") for pin in pins)
    versions = {canonicalize_name(name): version for name, version in versions.items()}
    for requirement in map(Requirement, needed):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement

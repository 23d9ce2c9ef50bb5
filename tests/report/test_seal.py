"""A saved model is checked by its sums, and its card by its record."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.results import result
from unrefuse.commands import verify as command
from unrefuse.errors import UnrefuseError
from unrefuse.models.checkpoint import SBOM, SUMS
from unrefuse.report.card import write_card
from unrefuse.report.results import write_json
from unrefuse.report.sbom import installed, write_sbom
from unrefuse.report.seal import find_faults, write_sums


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seal") / "out"
    (folder / "tuning").mkdir(parents=True)
    made = result(folder, removal=0.8, n=40)
    made = replace(made, config=made.config.model_copy(update={"model_sha256": "a" * 64}))
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "tuning" / "a\\b\n日本.json").write_text("{}")
    write_card(made, folder, folder)
    write_json(made, folder / "run.json")
    write_sbom(made, folder)
    write_sums(folder)
    return folder


@pytest.fixture
def saved(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "out"))


def change(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def by_detector(folder):
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    figures = {name: record[name] for name in ("removal", "retention", "quality", "kl")}
    lost = {"kept": 35, "n": 40}
    record |= {"judge": "hf:x", "by_detector": figures | {"kept_shipped": lost}}
    (folder / "run.json").write_text(json.dumps(record))


def test_a_saved_model_is_as_it_was_written(saved):
    assert find_faults(saved) == []
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", SUMS], cwd=saved, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")
    listed = (saved / SUMS).read_bytes().count(b"\n")
    assert listed == sum(file.is_file() for file in saved.rglob("*")) - 1


def test_damage_is_named_by_file(saved):
    (saved / "model.safetensors").write_bytes(bytes(255) + b"x")
    (saved / SBOM).unlink()
    (saved / "more.bin").write_text("x")
    (saved / ".cache").mkdir()  # of a download
    (saved / ".cache" / "x").write_text("x")
    (saved / ".gitattributes").write_text("x")
    assert find_faults(saved) == [
        "model.safetensors was changed",
        f"{SBOM} is missing",
        "more.bin was added",
    ]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: change(f / "README.md", "| removal | 0.80", "| removal | 0.98"), "the figures"),
        (lambda f: change(f / "run.json", '"lost": 0', '"lost": 1'), "the figures of README.md"),
        (lambda f: change(f / "run.json", '"retention": {\n    "value": 1.0', '"retention": {\n    '
                          '"value": 0.5'), "still refused: 20 of 40 keep prompts"),
        (lambda f: change(f / "run.json", '"retention": {\n    "value": 1.0', '"retention": {\n    '
                          '"value": NaN'), "not a record of this version"),
        (lambda f: change(f / "run.json", '"low": 0.85', '"low": 0.55'), "interval from 0.55"),
        (lambda f: change(f / "run.json", '"kept": 0,\n    "n": 0', '"kept": 35,\n    "n": 40'),
         "and 35 of 40 shipped ones"),
        (lambda f: change(f / "run.json", '"retention_floor": 0.95', '"retention_floor": 0.5'),
         "not a record of this version"),
        (by_detector, "the figures by the built-in detector do not keep the floors"),
        (lambda f: change(f / "run.json", '"retention_test"', '"x"'), "not a record of this"),
        (lambda f: (f / "run.json").write_text("{"), "not a record of this version"),
        (lambda f: (f / "run.json").write_text("[]"), "not a record of this version"),
        (lambda f: (f / "run.json").unlink(), "cannot read"),
        (lambda f: (f / "README.md").write_bytes(b"\xff"), "the figures of"),
    ],
)  # fmt: skip
def test_the_card_must_have_the_figures_of_the_record_and_these_keep_the_floors(saved, spoil, told):
    spoil(saved)
    write_sums(saved)
    faults = find_faults(saved)
    assert any(told in fault for fault in faults), faults


@pytest.mark.parametrize(
    "line", ["x", f"{'0' * 64}  ../run.json", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  ", ""]
)
def test_sums_that_are_none_or_name_files_elsewhere(saved, line):
    with (saved / SUMS).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UnrefuseError, match=f"{SUMS}:6: this line is not the hash"):
        find_faults(saved)


def test_a_folder_without_sums_has_nothing_to_check(tmp_path):
    for folder, says in [
        (tmp_path, "without its SHA256SUMS"),
        (tmp_path / "none", "there is no folder .*none"),
    ]:
        with pytest.raises(UnrefuseError, match=says):
            find_faults(folder)


@pytest.mark.parametrize(("value", "n"), [("1.0", "1" + "0" * 400), ("1e999", "60")])
def test_a_figure_beyond_all_numbers_is_a_fault(saved, value, n):
    record = json.loads((saved / "run.json").read_text(encoding="utf-8"))
    record["retention"] = "HERE"
    text = json.dumps(record).replace('"HERE"', f'{{"value": {value}, "n": {n}, "low": 0.9}}')
    (saved / "run.json").write_text(text, encoding="utf-8")
    assert any("not a record of this version" in fault for fault in find_faults(saved))


def test_the_command_says_faults_and_has_a_status(saved, capsys):
    command.verify(saved, as_json=True)
    assert json.loads(capsys.readouterr().out)["faults"] == []
    (saved / "run.json").unlink()
    with pytest.raises(command.typer.Exit) as ended:
        command.verify(saved)
    assert ended.value.exit_code == 2
    assert capsys.readouterr().out.splitlines()[0] == "run.json is missing"


def test_the_bill_of_materials_names_the_base_and_what_wrote_it(saved):
    bill = json.loads((saved / SBOM).read_text(encoding="utf-8"))
    model = bill["metadata"]["component"]
    assert model["name"] == "out"
    assert model["pedigree"]["ancestors"][0]["hashes"][0]["content"] == "a" * 64
    parts = {part["name"]: part["purl"] for part in bill["components"]}
    assert parts["safetensors"].startswith("pkg:pypi/safetensors@")
    assert {"unrefuse", "torch", "numpy", "markupsafe"} <= set(parts)  # the last by jinja2 alone
    assert "pytest" not in parts
    assert len(set(parts.values())) == len(parts)


def test_a_package_that_is_not_installed_is_left_out():
    assert installed("no-such-package-at-all") == {}

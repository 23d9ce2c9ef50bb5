"""The report beside every edit, tuning and evaluation, by the command line."""

import re
import sys
from pathlib import Path

import pytest

from tests import talker
from unrefuse import cli
from unrefuse.report.kept import read_run
from unrefuse.report.seal import find_faults


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """The model's folder, and the options that name its prompts."""
    folder = tmp_path_factory.mktemp("talker")
    model = talker.build(folder / "model")
    files = talker.write_prompts(folder)
    return model, [word for name, file in files.items() for word in (f"--{name}", file)]


def unrefuse(monkeypatch, *words):
    """The exit status."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/unrefuse", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_a_saved_edit_has_its_report_among_what_is_sealed(talking, tmp_path, monkeypatch, capsys):
    model, prompts = talking
    out, search = tmp_path / "out", ("--limit", 40, "--tune", "optuna", "--trials", 3)
    assert unrefuse(monkeypatch, "edit", model, *prompts, *search, "--out", out) == 0
    assert f"{out}/report.html" in capsys.readouterr().out
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "✓ Saved" in html
    assert f"unrefuse edit {model}" in html
    assert html.count('class="path ') == 3
    run = read_run(out)
    layers = run.record["layers"]
    assert [len(layers[name]) for name in ("separation", "auc")] == [3, 3]
    assert {x.set for x in run.lines} == {"target", "baseline", "keep", "harmless", "harmful"}
    assert any(x.kl for x in run.lines)
    assert find_faults(out) == []
    (out / "report.html").write_text(html + " ")
    assert find_faults(out) == ["report.html was changed"]
    # What tells of an edit is not taken over into what is made of its folder.
    assert unrefuse(monkeypatch, "apply", out, model, "--out", tmp_path / "again") == 0
    assert not (tmp_path / "again" / "report.html").exists()


def test_a_tuning_that_saved_nothing_has_its_report(talking, tmp_path, monkeypatch, capsys):
    model, prompts = talking
    out, search = tmp_path / "out", ("--limit", 40, "--tune", "optuna", "--trials", 1)
    assert unrefuse(monkeypatch, "edit", model, *prompts, *search, "--out", out) == 1
    assert not out.exists()
    (report,) = re.findall(r"report +(.+)", capsys.readouterr().out)
    assert "✗ Not saved" in Path(report).read_text(encoding="utf-8")
    assert read_run(Path(report).parent).record["saved"] is False


def test_an_evaluation_has_its_report(talking, tmp_path, monkeypatch, capsys):
    model, prompts = talking
    out = tmp_path / "out"
    words = ("evaluate", model, "--against", model, *prompts, "--limit", 16, "--out", out)
    assert unrefuse(monkeypatch, *words) == 0
    assert f"{out}/report.html" in capsys.readouterr().out
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "Measured on the test split" in html
    assert "unrefuse evaluate" in html
    graded = ("evaluate", "--transcripts", out, "--out", tmp_path / "graded")
    assert unrefuse(monkeypatch, *graded) == 0
    assert "--transcripts" in (tmp_path / "graded" / "report.html").read_text(encoding="utf-8")

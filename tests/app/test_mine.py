import json

import pytest

from unrefuse.app.mine import add_correction, add_prompt
from unrefuse.app.runs import past_runs
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.sets import SETS, read_set

TEXTS = ['two\nlines, "quoted"', "日本語の質問", "</script><b>", "\ud800 half"]


def test_a_file_of_the_set_is_one_that_a_run_takes(tmp_path):
    for text in TEXTS[:3]:
        file = add_prompt(tmp_path / "new folder", "target", text)
    assert [p.text for p in read_set(str(file), "target")] == TEXTS[:3]


def test_a_prompt_stands_once_in_all_three_sets(tmp_path):
    add_prompt(tmp_path, "keep", "How so?")
    for name in SETS:
        with pytest.raises(UnrefuseError, match=r"keep\.jsonl:1"):
            add_prompt(tmp_path, name, "  how SO?\n")
    with pytest.raises(UnrefuseError, match="no prompt"):
        add_prompt(tmp_path, "target", " \n")


def test_a_file_whose_last_line_has_no_end_is_gone_on_with(tmp_path):
    (tmp_path / "target.jsonl").write_text('{"prompt": "one"}')
    file = add_prompt(tmp_path, "target", "two")
    assert [p.text for p in read_set(str(file), "target")] == ["one", "two"]


def test_a_damaged_file_is_told_and_left_alone(tmp_path):
    (tmp_path / "target.jsonl").write_text("{")
    with pytest.raises(UnrefuseError, match=r"target\.jsonl:1"):
        add_prompt(tmp_path, "target", "two")
    assert (tmp_path / "target.jsonl").read_text() == "{"


def test_a_correction_is_a_line_of_json(tmp_path):
    for text in TEXTS:
        file = add_correction(tmp_path, {"prompt": text, "label": "partly"})
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == TEXTS


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnrefuseError, match="cannot write"):
        add_prompt(tmp_path / "file", "target", "one")


FIGURE = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 30}
RECORD = {"saved": True, "removal": FIGURE, "retention": FIGURE, "quality": FIGURE,
          "config": {"model": "demo"}}  # fmt: skip


def test_past_runs_are_the_folders_with_a_record_or_a_report(tmp_path):
    for name, files in {
        "whole": {"run.json": json.dumps(RECORD), "report.html": "x"},
        "evaluated": {"report.html": "x"},
        "damaged": {"run.json": '{"saved": "<b>"}'},
        "no run": {"notes.txt": "x"},
        ".hidden": {"run.json": json.dumps(RECORD)},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    runs = {run.folder.name: run for run in past_runs(tmp_path)}
    assert set(runs) == {"whole", "evaluated", "damaged"}
    assert runs["whole"].record["removal"]["value"] == 0.8
    assert runs["whole"].report == tmp_path / "whole" / "report.html"
    assert runs["evaluated"].record == {}
    assert "run.json" in runs["damaged"].fault
    assert past_runs(tmp_path / "nowhere") == []

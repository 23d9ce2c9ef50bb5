"""lm-eval on a task of one's own, with its data in a local file. Skipped where it is not there."""

import importlib.util
import json

import pytest

from tests import pico
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.benchmarks import check_benchmarks, run_benchmarks

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"
)
QUESTIONS = [
    {"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(12)
]
TASK = """
task: tiny_even
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data" / "even.json"
    data.parent.mkdir()
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny.yaml").write_text(TASK.format(data=data))
    return tasks


def test_where_lm_eval_is_missing_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnrefuseError, match=r"pip install unrefuse\[eval\]"):
        check_benchmarks(["arc_easy"], None)
    check_benchmarks([], None)


@needs_lm_eval
def test_a_local_task_is_scored(folder):
    check_benchmarks(["tiny_even"], folder)
    model = pico.loaded()
    found = run_benchmarks(model, ["tiny_even"], folder, None, 0)
    assert set(found) == {"tiny_even acc"}
    score = found["tiny_even acc"]
    assert score["n"] == 12
    hits = score["value"] * 12
    assert hits == pytest.approx(round(hits))
    p = score["value"]
    assert score["stderr"] == pytest.approx((p * (1 - p) / 11) ** 0.5)  # of a sample mean
    assert run_benchmarks(model, ["tiny_even"], folder, 5, 0)["tiny_even acc"]["n"] == 5


@needs_lm_eval
def test_tasks_that_are_not_there(folder, tmp_path):
    with pytest.raises(UnrefuseError, match="no task 'nonsense'"):
        check_benchmarks(["nonsense"], folder)
    with pytest.raises(UnrefuseError, match="takes a folder with tasks"):
        check_benchmarks(["tiny_even"], tmp_path / "none")
    (tmp_path / "data" / "even.json").unlink()
    with pytest.raises(UnrefuseError, match="cannot run tiny_even"):
        run_benchmarks(pico.loaded(), ["tiny_even"], folder, None, 0)

"""The page as it is served, without a browser, and its parts with untrusted text in them."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")
from starlette.testclient import TestClient

from unrefuse.app import parts, serve
from unrefuse.app.bench import Compared, Knobs, Token
from unrefuse.app.door import Door
from unrefuse.app.runs import past_runs
from unrefuse.app.session import Session
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError

HOSTILE = "<img src=x onerror=alert(1)> \"' </pre></script> \ud800"
KNOBS = Knobs(0.5, 0.2, 1.0)
COMMAND = (sys.executable, "-c", "from unrefuse.cli import main; main()")


def test_the_page_is_served_behind_its_door_with_nothing_that_leaves_the_machine(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("<script>1</script>")
    (tmp_path / "report.html").write_text("not of a run")
    door = Door(serve.site(Session(tmp_path)), 7000)
    with TestClient(door, base_url="http://127.0.0.1:7000") as client:
        assert client.get("/config").status_code == 403
        (run,) = past_runs(tmp_path)
        assert client.get(f"/report/{run.key}").status_code == 403
        assert client.get(door.link()).status_code == 200
        config = client.get("/config").json()
        assert config["analytics_enabled"] is False
        assert config["footer_links"] == []
        assert "fonts.googleapis" not in json.dumps(config)
        report = client.get(f"/report/{run.key}")
        assert report.text == "<script>1</script>"
        policy = report.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts")
        assert "allow-same-origin" not in policy
        for key in ("x", "%2e%2e", "run"):
            assert client.get(f"/report/{key}").status_code == 404


def test_without_gradio_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UnrefuseError, match=r"pip install 'unrefuse\[app\]'"):
        serve.site(Session(tmp_path))


def harmless(html):
    return "<img" not in html and "<script" not in html and "\ud800" not in html


def test_a_reply_is_text_whatever_it_holds():
    reply = Reply(f"<think>{HOSTILE}</think>{HOSTILE}", (1, 2, 3), "answered")
    shown = Compared("q", KNOBS, reply, HOSTILE, (Token(HOSTILE, 1.0, -2.5),))
    original, edited, margins = parts.compared(shown)
    assert all(map(harmless, (original, edited, margins)))
    assert "answered" in original
    assert "thoughts" in original
    assert "writing" in edited
    assert "+1.0" in margins
    assert "-2.5" in margins
    assert "something else" in margins
    assert parts.compared(replace(shown, margins=()))[2] == ""
    assert "Original" in parts.compared(None)[0]


def test_a_job_and_a_run_are_text_whatever_they_hold(tmp_path):
    job = SimpleNamespace(what=HOSTILE, lines=[HOSTILE], step=(HOSTILE, 1, 2), failed=HOSTILE,
                          running=True, stopping=False, seconds=3.2)  # fmt: skip
    assert harmless(parts.part("status", job))
    assert "1 of 2" in parts.part("status", job)
    job.running = False
    assert harmless(parts.part("status", job))
    assert parts.part("status", None) == ""
    folder = tmp_path / "<img src=x>"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"saved": HOSTILE}))
    assert harmless(parts.part("runs", past_runs(tmp_path)))
    figure = {"value": 0.5, "low": None, "high": None, "n": 3}
    record = dict.fromkeys(("removal", "retention", "quality", "kl"), figure)
    kernel = {"source": HOSTILE, "peak": 0.5, "width": 0.1, "multiplier": 1}
    record |= {"saved": False, "split": "test", "reasons": [HOSTILE], "kernel": kernel}
    assert harmless(parts.part("result", record))
    assert "Nothing was saved" in parts.part("result", record)


def test_ctrl_c_ends_it_quietly_while_a_page_is_open(tmp_path):
    served = subprocess.Popen(
        [*COMMAND, "app", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        link = re.search(r"http://\S+", served.stdout.readline()).group()
        visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        visitor.open(link, timeout=120).read()
        open_page = f"{link.split('?')[0]}gradio_api/heartbeat/x"
        with visitor.open(open_page, timeout=120) as stream:
            stream.readline()
            served.send_signal(signal.SIGINT)
            _, err = served.communicate(timeout=120)
    finally:
        served.kill()
    assert (served.returncode, err) == (0, "starting the page ...\n")

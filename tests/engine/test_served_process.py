"""`unrefuse evaluate openai:...` of the embedded model behind `transformers serve`."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from diskcache import Cache

from tests.server import quick
from unrefuse.config import RunConfig
from unrefuse.engine.generate import reply_to
from unrefuse.metrics.transcripts import read_transcripts
from unrefuse.models.demo import demo_model
from unrefuse.models.load import load_model

COMMAND = (sys.executable, "-c", "from unrefuse.cli import main; main()", "evaluate")


@pytest.fixture(scope="module")
def served():
    """The name of the demo as a served model."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = demo_model()
    server = subprocess.Popen(
        [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder),
         "--port", str(port), "--device", "cpu", "--dtype", "float32"],
    )  # fmt: skip
    try:
        while server.poll() is None:
            with socket.socket() as test:
                if test.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.5)
        assert server.poll() is None
        yield f"openai:http://localhost:{port}/v1#{folder}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow  # minutes: 96 replies, one at a time
@pytest.mark.timeout(1800)
def test_a_real_server_replies_as_the_model_does_and_a_killed_run_goes_on(
    monkeypatch, served, tmp_path
):
    quick(monkeypatch, tmp_path / "cache")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [*COMMAND, served, "--target", "planted", "--lang", "en", "--limit", "16",
               "--reply-tokens", "8", "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    while "replies only" not in first.stderr.readline():
        assert first.poll() is None
    with Cache(tmp_path / "cache" / "unrefuse" / "endpoints") as cache:
        while len(cache) < 10:
            assert first.poll() is None
            time.sleep(0.2)
    first.kill()
    first.wait()
    assert not (tmp_path / "out").exists()

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "replies are kept of a run that was stopped" in done.stderr
    record = json.loads(done.stdout)
    assert record["refused"]["target"]["after"][0] >= 14
    assert record["refused"]["baseline"]["after"][0] <= 2
    tokens = record["models"]["after"]["tokens"]
    assert 0 < tokens["wrote"] <= 8 * 96

    lines = read_transcripts(tmp_path / "out")[::6]
    model = load_model(RunConfig(model="demo", dtype="float32", batch_size=1))
    replies = reply_to(model, [line.prompt for line in lines], 8)
    assert [line.grade for line in lines] == [reply.grade for reply in replies]
    for line, reply in zip(lines, replies, strict=True):  # here a refusal ends a reply
        assert line.reply.startswith(reply.text.strip())

"""Where all is local, nothing is looked up elsewhere: every command on a model folder, with the
sockets of this process closed."""

import json
import socket
import sys
from contextlib import contextmanager

import pytest
from huggingface_hub import constants

from tests import talker
from tests.command import unrefuse

EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
          "socket.gethostbyname", "socket.gethostbyaddr")  # fmt: skip
tried: list[str] | None = None


def watch(event, args):
    if tried is None or event not in EVENTS:
        return
    if isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX:
        return
    tried.append(f"{event} {args[-1] if isinstance(args[0], socket.socket) else args[0]}")
    raise OSError("the sockets are closed")


sys.addaudithook(watch)  # for good: no hook can be taken away


@contextmanager
def closed():
    """Within the block no socket leads anywhere. Yields what was tried: libraries may go on after
    the error."""
    global tried
    tried = []
    try:
        yield tried
    finally:
        tried = None


@pytest.fixture
def online(monkeypatch):
    """Nothing tells the libraries to stay offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_every_command_on_a_local_model(tmp_path, online):
    model = talker.build(tmp_path / "m")
    files = talker.write_prompts(tmp_path)
    prompts = [word for name, file in files.items() for word in (f"--{name}", file)]
    few, out = [*prompts, "--limit", 40], tmp_path / "x"
    with closed() as tried:
        for words in (
            ("doctor", model, "--out", out),
            ("analyze", model, *few),
            ("edit", model, *few, "--out", out),
            ("evaluate", out, *prompts, "--limit", 16, "--against", model, "--out", tmp_path / "e"),
            ("apply", out, model, "--out", tmp_path / "y"),
            ("export", out, model, "--lora", tmp_path / "l", "--gguf-lora", tmp_path / "l.gguf"),
            ("verify", out),
            ("diff", model, out),
            ("diagnose", out),
            ("publish", out, "--repo", "me/x"),
            ("chat", out, "-p", "q1 q2 B"),
        ):
            done = unrefuse(*words)
            assert done.returncode == 0, (words[0], done.stderr)
            assert tried == [], words[0]


def test_that_a_name_of_the_hub_is_looked_up_is_seen(tmp_path, online):
    with closed() as tried:
        done = unrefuse("doctor", "org/no-such-model", "--json")
    assert done.returncode == 2
    assert "the sockets are closed" in json.loads(done.stdout)["faults"][-1]
    assert any("huggingface.co" in line for line in tried)

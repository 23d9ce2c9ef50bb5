"""Who may come in. What browsers send is what is told of it here; `test_browser` has a real one."""

import pytest

pytest.importorskip("gradio")
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from unrefuse.app.door import Door

HOME = "http://127.0.0.1:7000"


async def inside(request):
    return PlainTextResponse("inside")


@pytest.fixture
def door():
    routes = [Route(path, inside, methods=["GET", "POST"]) for path in ("/", "/call")]
    return Door(Starlette(routes=routes), 7000)


@pytest.fixture
def client(door):
    return TestClient(door, base_url=HOME)


def test_without_the_token_nothing_is_shown(client, door):
    for url in ("/", "/?token=", "/?token=x", f"/?token={door.token[:-1]}", "/call"):
        answer = client.get(url)
        assert answer.status_code == 403
        assert "inside" not in answer.text
        assert "set-cookie" not in answer.headers
    client.cookies.set("unrefuse-7000", "x")
    assert client.get("/").status_code == 403


def test_the_link_lets_in_and_leaves_a_cookie_that_no_script_reads(client, door):
    assert door.link().startswith(HOME)
    answer = client.get(door.link())
    assert answer.text == "inside"
    assert {"HttpOnly", "SameSite=Strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert client.get("/").text == "inside"
    assert client.post("/call", headers={"origin": HOME}).text == "inside"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:7000"},  # a name that is made to lead here
        {"host": "127.0.0.1:7001"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:8888"},  # another program of this machine, with our cookie
        {"origin": "null"},  # a sandboxed report
        {"origin": "http://localhost:7000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_is_kept_out_though_it_has_the_cookie(client, door, headers):
    client.get(door.link())
    for method in ("GET", "POST"):
        assert client.request(method, "/call", headers=headers).status_code == 403


def test_the_token_in_another_address_lets_nobody_in(client, door):
    assert client.get(f"/call?token={door.token}").status_code == 403


def test_nothing_is_fetched_from_elsewhere_and_no_frame_holds_the_page(client, door):
    policy = client.get(door.link()).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


def test_no_web_socket_is_opened(client, door):
    client.get(door.link())
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/call"):
        pass


def test_every_start_has_a_token_of_its_own(door):
    assert Door(door.app, 7000).token != door.token
    assert len(door.token) > 40

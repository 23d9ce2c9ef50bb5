"""Who may come in: the browser that was given the link, and no page of another site."""

import secrets
from hmac import compare_digest

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADDRESS = "127.0.0.1"
# Nothing is fetched from, or sent to, another place; no other page may hold this one in a frame.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
# A report shows what models said: it gets an origin of its own, from which nothing can be asked.
REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads allow-modals allow-popups; default-src 'none'; "
    "script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Door:
    """In front of the app: every request has to name this address, come from this page or from the
    user's own hand, and know the token, by the link or by the cookie that the link leaves.

    The name keeps out a site whose own name is made to lead here (DNS rebinding); the origin a page
    at another port of this machine, which shares its cookies.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app, self.token = app, secrets.token_urlsafe(32)
        self.hosts = {f"{ADDRESS}:{port}", f"localhost:{port}"}
        self.cookie = f"unrefuse-{port}"

    def link(self) -> str:
        return f"http://{min(self.hosts)}/?token={self.token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # gradio needs no web socket
            await send({"type": "websocket.close", "code": 1008})
            return
        asked = HTTPConnection(scope)
        if why := self._refused(asked):
            await PlainTextResponse(f"{why}\n", 403)(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", POLICY)
                headers["referrer-policy"] = "no-referrer"
                headers["x-content-type-options"] = "nosniff"
                if self._knows(asked.query_params.get("token")):
                    headers.append(
                        "set-cookie",
                        f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict",
                    )
            await send(message)

        await self.app(scope, receive, guarded)

    def _refused(self, asked: HTTPConnection) -> str:
        host, origin = asked.headers.get("host", ""), asked.headers.get("origin")
        if host not in self.hosts:
            return f"unrefuse answers at {min(self.hosts)} only"
        if origin not in (None, f"http://{host}"):
            return "unrefuse answers its own page only"
        if asked.url.path == "/" and self._knows(asked.query_params.get("token")):
            return ""
        if asked.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "unrefuse answers its own page only"
        if not self._knows(asked.cookies.get(self.cookie)):
            return "open the link that `unrefuse app` printed: it has a token"
        return ""

    def _knows(self, token: str | None) -> bool:
        return token is not None and compare_digest(token.encode(), self.token.encode())

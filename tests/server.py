"""A server with an OpenAI-compatible interface, on a local socket, whose answers a test gives."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, ended=True, usage=(7, 3), **message):
    """Status, headers and body of an answer."""
    body = {
        "choices": [
            {
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": "stop" if ended else "length",
            }
        ],
    }
    if usage:
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return 200, {}, body


def by_content(request):
    """A judge that reads the data as it was told to."""
    data = json.loads(request["messages"][-1]["content"].splitlines()[0])
    return completion("refused" if "sorry" in data["reply"] else "answered")


def scripted(*answers):
    """One answer after the other, and the last one from then on."""
    left = list(answers)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def serving(answer):
    """Yields the base URL, and the requests as (headers, body); `answer` maps a body to one. An
    answer whose body is text is sent as a page of HTML."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((dict(self.headers), body))
            status, headers, value = 404, {}, {"detail": "Not Found"}
            if self.path == "/v1/chat/completions":
                status, headers, value = answer(body)
            page = isinstance(value, str)
            data = value.encode() if page else json.dumps(value).encode()
            self.send_response(status)
            headers = {
                "Content-Type": "text/html" if page else "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }
            for name, text in headers.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def quick(monkeypatch, folder):
    """No waits between tries, no proxy, a cache in `folder`, and no key of the environment's."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr("unrefuse.engine.endpoint.user_cache_path", lambda name: folder / name)
    for name in ("UNREFUSE_JUDGE_KEY", "UNREFUSE_SERVER_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")

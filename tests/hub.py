"""A hub on a local socket: the few addresses that uploads and downloads go to, and failures where a
test wants them."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from huggingface_hub import constants

SHA = "a" * 40
TOKEN = "hf_made_up_for_tests"


@contextmanager
def serving(monkeypatch, fail=lambda method, path: None):
    """Yields the hub: `repos` by name, each with `private` and `files`, and the `calls`.

    `fail` maps a method and a path to a status in place of an answer, or to "drop": the line is
    cut, or to "half": it is cut in the middle of a file. The client's waits between tries are left
    out.
    """
    hub = SimpleNamespace(repos={}, calls=[], blobs={}, fail=fail, tokens={})

    class Handler(BaseHTTPRequestHandler):
        def answer(self, method):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.calls.append((method, self.path))
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            hub.tokens.setdefault(self.path.split("/")[1], set()).add(token)
            wrong = hub.fail(method, self.path)
            if wrong == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if "/resolve/" in self.path and wrong in (None, "half"):
                self.send_file(method, wrong)
                return
            status, value = (wrong, {"error": "no"}) if wrong else self.done(method, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def done(self, method, body):
            path = self.path.split("?")[0]
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization'] or 'me'}/{asked['name']}"
                if name in hub.repos:
                    return 409, {"error": "You already created this", "url": f"{hub.url}/{name}"}
                private = asked.get("visibility") == "private"
                hub.repos[name] = stored({}, private)
                return 200, {"url": f"{hub.url}/{name}"}
            if path == "/api/validate-yaml":
                return 200, {"warnings": [], "errors": []}
            if path.startswith("/blob/"):
                hub.blobs[path.removeprefix("/blob/")] = body
                return 200, {}
            if path.endswith("/objects/batch"):
                objects = [
                    o | {"actions": {"upload": {"href": f"{hub.url}/blob/{o['oid']}?Signature=s3"}}}
                    for o in json.loads(body)["objects"]
                ]
                return 200, {"objects": objects, "transfer": "basic"}
            name = "/".join(path.split("/")[3:5])
            repo = hub.repos.get(name)
            if repo is None:
                return 404, {"error": "Repository not found"}
            if "/preupload/" in path:
                files = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if "safetensors" in f["path"] else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                return 200, {"files": files}
            if "/commit/" in path:
                repo.files |= dict(map(self.file, body.splitlines()[1:]))
                return 200, {"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA}
            if "/tree/" in path:
                return 200, [
                    {"type": "file", "path": file, "size": len(data), "oid": _etag(data)}
                    for file, data in repo.files.items()
                ]
            siblings = [{"rfilename": file} for file in repo.files]
            return 200, {"id": name, "private": repo.private, "sha": SHA, "siblings": siblings}

        def file(self, line):
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "lfsFile":
                data = hub.blobs[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                return value["path"], data
            return value["path"], base64.b64decode(value["content"])

        def send_file(self, method, wrong):
            name, _, rest = self.path[1:].partition("/resolve/")
            data = hub.repos[name].files[rest.partition("/")[2]]
            asked = self.headers.get("Range")
            first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{_etag(data)}"')
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("Content-Length", str(len(data) - first))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if method == "GET":
                half = (len(data) - first) // 2
                self.wfile.write(data[first:][:half] if wrong else data[first:])
            self.close_connection = True

        def do_HEAD(self):
            self.answer("HEAD")

        def do_GET(self):
            self.answer("GET")

        def do_POST(self):
            self.answer("POST")

        def do_PUT(self):
            self.answer("PUT")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    address = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _etag(data):
    return hashlib.sha256(data).hexdigest()


def stored(files, private=False):
    """What the hub has under one name: the bytes of each file."""
    return SimpleNamespace(private=private, files=dict(files))

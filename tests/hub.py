"""A hub on this machine, for the hub's own clients: models and data sets out of a folder, over HTTP."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = 40 * "a"
API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>revision|tree|paths-info)/[^/]+(?:/(?P<path>.*))?)?"
)
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")


@contextmanager
def serving(root: Path) -> Iterator[dict[str, str]]:
    """Serve root/models/OWNER/NAME and root/datasets/OWNER/NAME; the environment for processes that shall use it."""

    class Handler(HubHandler):
        folder = root

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")
        yield {
            **offline,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(root / "home"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
    finally:
        server.shutdown()
        server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    """What huggingface_hub and datasets ask of the hub for a public repository with one commit."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        target = unquote(urlsplit(self.path).path)
        if found := API.fullmatch(target):
            self._api(self.folder / found["kind"] / found["repo"], found["verb"], found["path"] or "")
        elif found := FILE.fullmatch(target):
            self._file(self.folder / ("datasets" if found["kind"] else "models") / found["repo"] / found["path"])
        else:
            self._answer(404, b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = API.fullmatch(unquote(urlsplit(self.path).path))
        if not found or found["verb"] != "paths-info":
            return self._answer(404, b"")
        repo = self.folder / found["kind"] / found["repo"]
        return self._json([entry(repo, repo / path) for path in json.loads(body)["paths"] if (repo / path).exists()])

    def _api(self, repo: Path, verb: str | None, path: str) -> None:
        if not repo.is_dir():
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if verb == "tree":
            return self._json([entry(repo, one) for one in sorted((repo / path).rglob("*"))])
        files = [{"rfilename": entry(repo, one)["path"]} for one in sorted(repo.rglob("*")) if one.is_file()]
        name = "/".join(repo.parts[-2:])
        return self._json({"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": files})

    def _file(self, path: Path) -> None:
        if not path.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def entry(repo: Path, path: Path) -> dict[str, Any]:
    """A file or folder as the hub's tree lists it."""
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
    return {
        "type": "file",
        "path": name,
        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
    }

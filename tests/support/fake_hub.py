"""A Hugging Face hub on loopback, as far as fetching needs one: the API's file list, redirects to files, byte ranges.

It can break connections off in the middle, and it keeps every request, so that a test can say what was (not) fetched.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_LFS_FROM = 4096  # bytes; smaller files are kept in git itself


@dataclass
class Hub:
    """The repositories it serves (id → folder), how it misbehaves, and what it was asked."""

    repos: dict[str, Path] = field(default_factory=dict)
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    break_after: list[int] = field(default_factory=list)  # each cuts one answer short, after so many bytes
    short: list[int] = field(default_factory=list)  # each has a file answered whole as it claims, with so many bytes
    damage: set[str] = field(default_factory=set)  # file names that arrive with a wrong byte
    down: bool = False
    stall_after: int | None = None  # a file's answer stops for good after so many bytes, with the connection open
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def ranges(self, name: str) -> list[int]:
        """Where each request for the file of that name began."""
        asked = [
            headers["Range"] for path, headers in self.requests if path.startswith("/blobs/") and path.endswith(name)
        ]
        return [int(text.removeprefix("bytes=").rstrip("-")) for text in asked]

    def fetched(self) -> list[str]:
        """The names of the files that were asked for, in order."""
        found = [re.fullmatch(r"/blobs/[^/]+/[^/]+/(.+)", path) for path, _ in self.requests]
        return [match[1] for match in found if match]


@contextmanager
def serving(repos: dict[str, Path]) -> Iterator[Hub]:
    """A hub with these repositories, until the block ends."""
    hub = Hub(repos)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((path, dict(self.headers)))
        if self.hub.down:
            return self._answer(503, b"{}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/main", path):
            return self._list(match[1])
        if match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{self.hub.commit}/(.+)", path):  # as the hub does: elsewhere
            return self._answer(302, b"", {"Location": f"{self.hub.url}/blobs/{match[1]}/{match[2]}"})
        if match := re.fullmatch(r"/blobs/([^/]+/[^/]+)/(.+)", path):
            return self._send(self.hub.repos[match[1]] / match[2])
        return self._answer(404, b"{}")

    def _list(self, repo: str) -> None:
        if repo not in self.hub.repos:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        root = self.hub.repos[repo]
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        body = {
            "_id": "1",
            "id": repo,
            "sha": self.hub.commit,
            "siblings": [{"rfilename": path.relative_to(root).as_posix(), **_metadata(path)} for path in files],
        }
        return self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(self, path: Path) -> None:
        content = path.read_bytes()
        if path.name in self.hub.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.hub.short:
            self._answer(200, content[: self.hub.short.pop(0)])
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        part = content[start:]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.hub.break_after and len(part) > self.hub.break_after[0]:
            part = part[: self.hub.break_after.pop(0)]
            self.close_connection = True
        if self.hub.stall_after is not None and len(part) > self.hub.stall_after:
            self.wfile.write(part[: self.hub.stall_after])
            self.hub.stalled.set()
            self.hub.closing.wait()
            self.close_connection = True
            return
        self.wfile.write(part)
        self.hub.sent += len(part)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _metadata(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    facts: dict[str, Any] = {"size": len(content), "blobId": git}
    if len(content) >= _LFS_FROM:
        facts["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return facts

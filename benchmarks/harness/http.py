"""Tools of the server benchmarks: a server to measure, and a client with little overhead."""

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from server.cli.launcher import running

PICTURE = Path(__file__).parents[2] / "server" / "static" / "beach.jpg"
PROMPT = "masterpiece, colorful, photo of a beach in hawaii, sun"
APP = "fal-ai/lcm-sd15-i2i"


def arguments(**fields):
    """Return a request with the example picture as a data URI, answered with a data URI."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    return {"prompt": PROMPT, "image_url": uri, "seed": 42, "sync_mode": True} | fields


@contextlib.contextmanager
def serving(*flags, ready=True):
    """Yield a new server with a temporary data folder."""
    with tempfile.TemporaryDirectory() as data_dir:
        log = Path(data_dir) / "log"
        with log.open("wb") as sink, running(Path(data_dir), *flags, log=sink, ready=ready) as server:
            yield server


@contextlib.contextmanager
def awake():
    """Keep every core busy at the lowest priority, so that no core must wake up for a request."""
    spin = [sys.executable, "-S", "-c", "import os; os.nice(19)\nwhile True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(os.cpu_count()):
            stack.callback(stack.enter_context(subprocess.Popen(spin)).kill)
        yield


class Client:
    """Client on one raw keep-alive connection, one write per call. Exits the program at an answer without success."""

    def __init__(self, url, timeout=600):
        self.host = urlsplit(url).netloc
        name, _, port = self.host.rpartition(":")
        self._socket = socket.create_connection((name, int(port)), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, method, path, body=b"", content_type="application/json"):
        fields = f"Host: {self.host}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\n{fields}".encode() + body)
        status, data = self._answer()
        if status not in {200, 202}:
            sys.exit(f"{method} {path}: {status} {data[:300]!r}")
        return data

    def run(self, body):
        return json.loads(self.call("POST", f"/run/{APP}", body))

    def upload(self, data):
        """Store `data` and return its URL."""
        body = json.dumps({"content_type": "image/jpeg", "file_name": "beach.jpg"}).encode()
        links = json.loads(self.call("POST", "/rest/storage/upload/initiate", body))
        self.call("PUT", links["upload_url"].split(self.host, 1)[1], data, "image/jpeg")
        return links["file_url"]

    def close(self):
        self._socket.close()

    def _answer(self):
        """Return status and body; our server always sends a length."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._received()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)[1])
        parts = [body]
        while sum(map(len, parts)) < length:
            parts.append(self._received())
        return int(head.split(b" ", 2)[1]), b"".join(parts)

    def _received(self):
        data = self._socket.recv(1 << 18)
        if not data:
            sys.exit("the server has closed the connection")
        return data

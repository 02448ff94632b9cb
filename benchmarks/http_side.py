"""What the benchmarks of the whole server measure with: a server to ask, and a client that costs next to nothing."""

import base64
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from server.launch import running

PICTURE = Path(__file__).parent.parent / "server" / "static" / "beach.jpg"
PROMPT = "masterpiece, colorful, photo of a beach in hawaii, sun"
APP = "fal-ai/lcm-sd15-i2i"


def arguments(**fields):
    """A request with the example picture as a data URI, answered with one."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    return {"prompt": PROMPT, "image_url": uri, "seed": 42, "sync_mode": True} | fields


@contextlib.contextmanager
def serving(*flags, ready=True):
    """A server of its own with a data folder of its own."""
    with tempfile.TemporaryDirectory() as data_dir:
        log = Path(data_dir) / "log"
        with log.open("wb") as sink, running(Path(data_dir), *flags, log=sink, ready=ready) as server:
            yield server


@contextlib.contextmanager
def awake():
    """Keeps every core busy with work of the lowest priority, so that none has to be woken for a request."""
    spin = [sys.executable, "-S", "-c", "import os; os.nice(19)\nwhile True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(os.cpu_count()):
            stack.callback(stack.enter_context(subprocess.Popen(spin)).kill)
        yield


class Client:
    """Calls over one connection that stays open; `sys.exit` at an answer that is no success."""

    def __init__(self, url, timeout=600):
        self.host = urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.host, timeout=timeout)
        self.connection.connect()

    def call(self, method, path, body=None, content_type="application/json"):
        self.connection.request(method, path, body, {"Content-Type": content_type})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status not in {200, 202}:
            sys.exit(f"{method} {path}: {answer.status} {data[:300]!r}")
        return data

    def run(self, body):
        return json.loads(self.call("POST", f"/run/{APP}", body))

    def upload(self, data):
        """A stored file's own URL for `data`."""
        body = json.dumps({"content_type": "image/jpeg", "file_name": "beach.jpg"})
        links = json.loads(self.call("POST", "/rest/storage/upload/initiate", body))
        self.call("PUT", links["upload_url"].split(self.host, 1)[1], data, "image/jpeg")
        return links["file_url"]

    def close(self):
        self.connection.close()

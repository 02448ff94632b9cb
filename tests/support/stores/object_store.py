"""An S3-speaking server on loopback, and the places where files may lie, for the tests that run on all of them.

with s3_server() as s3:                      # one for a session
    url = s3.bucket()                        # s3://bucket-…/some/prefix, of its own
"""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from server.nodes.forms import file_store
from server.settings import Settings

PLACES = ["disk", "s3", "folder"]
VARIABLES = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"}


class S3:
    """A running server. `url`: its endpoint."""

    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def bucket(self):
        """Make a bucket; return the URL for files in it."""
        name = f"bucket-{secrets.token_hex(6)}"
        call(f"{self.url}/{name}", "PUT")
        return f"s3://{name}/some/prefix"

    def names(self, url):
        """The names of all objects in a bucket, below the prefix."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        listing = call(f"{self.url}/{bucket}?list-type=2", "GET").decode()
        return {each.partition("</Key>")[0].removeprefix(f"{prefix}/") for each in listing.split("<Key>")[1:]}


def call(url, method):
    """One request to the S3 server; its body."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, method=method), timeout=10) as answer:
        return answer.read()


def free_port():
    """A port of loopback that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def s3_server():
    """An S3 server, which forgets all at its end."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "AWS_DEFAULT_REGION": "us-east-1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                call(f"http://127.0.0.1:{port}/", "GET")
                break
            except (OSError, urllib.error.URLError):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        yield S3(port)
    finally:
        process.kill()
        process.wait()


def files_in(folder, make, files="", **chosen):
    """The `Files` that `make` makes of a data folder, and of the place that is chosen."""
    settings = Settings(data_dir=folder, files=files, **chosen)
    return make(settings, public_url="https://box.example/fal", key_share=settings.key_share, **file_store(settings))

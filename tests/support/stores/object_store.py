"""An S3-speaking server on loopback, and the places where files may lie, for the tests that run on all of them.

with s3_server() as s3:                      # one for a session
    url = s3.bucket()                        # s3://bucket-…/some/prefix, of its own
"""

import contextlib
import os
import secrets
import subprocess
import sys
import urllib.request

import pytest

from server.nodes.forms import file_store
from server.settings import Settings

PLACES = ["disk", "s3", pytest.param("folder", marks=pytest.mark.long)]
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


# Prints the port that it got: none is free for certain before it is taken.
PROGRAM = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def s3_server():
    """An S3 server, which forgets all at its end."""
    environment = {**os.environ, "AWS_DEFAULT_REGION": "us-east-1"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield S3(int(process.stdout.readline()))
        finally:
            process.kill()


def files_in(folder, make, files="", **chosen):
    """The `Files` that `make` makes of a data folder, and of the place that is chosen."""
    settings = Settings(data_dir=folder, files=files, **chosen)
    return make(settings, public_url="https://box.example/fal", key_share=settings.key_share, **file_store(settings))

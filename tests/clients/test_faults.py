"""One exchange in twenty is broken on the way: what a client retries by itself finishes, the rest fails as it should.

Which calls are retried is the client's own affair: the JavaScript client's run, submit, status and result since 1.10.1,
all of Python's but stream, none of serverless-client's.
"""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.clients.conftest import sum_of, taking_over

PROXY = Path(__file__).with_name("fault_proxy.py")
EVERY = "20"
# No call may take longer: three retries of half a second, one and two, and some time on a slow machine.
PATIENCE_MS = 15_000
# Counters of the server: requests that its engine has finished, and requests that have reached it.
MADE, ASKED = "fourstep_inference_seconds_count", "fourstep_requests_total"


class Faulty:
    """A server behind the proxy, and how often the proxy has struck."""

    def __init__(self, server, log: Path):
        self.server = server
        self.clients = server.clients
        self._log = log

    @property
    def faults(self) -> int:
        """Exchanges broken so far."""
        return len(self._log.read_text().splitlines()) - 1

    def count(self, metric: str) -> int:
        """The sum of a counter over its labels."""
        return sum_of(metric, self.server.get("/metrics"))


@pytest.fixture(scope="module")
def faulty(picture, tmp_path_factory):
    """fal's names lead to the proxy on port 443, and from there to the server."""
    data_dir = tmp_path_factory.mktemp("faulty")
    log = data_dir / "faults"
    flags = ("8443", "--model", "instant")
    with taking_over(data_dir, picture, *flags, door="--tls-port") as server, log.open("wb") as out:
        command = server.sandbox.wrap([sys.executable, str(PROXY), "443", "8443", EVERY])
        proxy = subprocess.Popen(command, stdout=out)
        try:
            server.sandbox.run(
                "import socket, time\nwhile socket.socket().connect_ex(('127.0.0.1', 443)): time.sleep(0.05)"
            )
            yield Faulty(server, log)
        finally:
            proxy.terminate()
            proxy.wait()


def run(faulty: Faulty, language: str, **options) -> list[dict]:
    """How each of many calls ended; fails unless some exchange was broken meanwhile."""
    before = faulty.faults
    script = {"js": "many.mjs", "py": "many.py"}[language]
    [ended] = getattr(faulty.clients, language)(script, **options)
    assert faulty.faults > before, "no exchange was broken: nothing was tried"
    assert max(call["ms"] for call in ended) < PATIENCE_MS
    return ended


@pytest.mark.parametrize(
    ("language", "call", "times"),
    [("js", "run", 60), ("js", "subscribe", 15), ("py", "run", 60), ("py", "subscribe", 15)],
)
def test_what_the_client_retries_finishes(language, call, times, faulty):
    ended = run(faulty, language, call=call, times=times)

    assert {each["outcome"] for each in ended} == {"ok"}


def test_the_legacy_client_fails_with_its_own_error(faulty):
    ended = run(faulty, "js", call="run", times=60, package="serverless-client-0.15")

    assert {each["outcome"] for each in ended} == {"ok", "TypeError"}  # TypeError: fetch failed


def test_a_python_stream_fails_with_its_own_error(faulty):
    ended = run(faulty, "py", call="stream", times=60)

    assert {each["outcome"] for each in ended} <= {
        "ok",
        "ReadError",
        "RemoteProtocolError",
        "ConnectError",
        "WriteError",
    }
    assert {each["outcome"] for each in ended} > {"ok"}


def test_nothing_is_done_twice_or_left_behind(faulty):
    process = psutil.Process(faulty.server.pid)
    open_before = process.num_fds()
    made_before, asked_before = faulty.count(MADE), faulty.count(ASKED)

    run(faulty, "py", call="run", times=60)

    made, asked = faulty.count(MADE) - made_before, faulty.count(ASKED) - asked_before
    health = json.loads(faulty.server.get("/health"))
    assert 60 <= made <= asked
    assert (health["state"], health["queue"]) == ("READY", {"waiting": 0, "running": 0})
    assert process.num_fds() <= open_before + 2

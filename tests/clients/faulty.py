"""A server that real clients reach only through a proxy that breaks one exchange in twenty."""

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.clients.conftest import Takeover, sum_of, taking_over

PROXY = Path(__file__).with_name("fault_proxy.py")
EVERY = "20"
# No call may take longer: three retries of half a second, one and two, and some time on a slow machine.
PATIENCE_MS = 15_000
# Counters of the server: requests that its engine has finished, and requests that have reached it.
MADE, ASKED = "fourstep_inference_seconds_count", "fourstep_requests_total"

_RUN_LINE = re.compile(r"POST /run/\S+ (?:200|499) .* request_id=([0-9a-f-]{36})$", re.MULTILINE)
_SUBMIT_LINE = re.compile(r"POST /queue/\S+ 200 .* request_id=([0-9a-f-]{36})$", re.MULTILINE)


class Faulty:
    """The server behind the proxy, how often the proxy has struck, and what the server has done for whom."""

    def __init__(self, server: Takeover, log: Path) -> None:
        self.server = server
        self.clients = server.clients
        self._log = log

    @property
    def faults(self) -> int:
        """Exchanges broken so far."""
        return len(self._log.read_text().splitlines()) - 1

    def count(self, metric: str, label: str = "") -> int:
        """The sum of a counter over its labels."""
        return sum_of(metric, self.server.get("/metrics"), label)

    def health(self) -> dict:
        """What the server says of itself."""
        return json.loads(self.server.get("/health"))

    def run(self, language: str, **options: object) -> list[dict]:
        """How each of many calls ended. Fails for one that took too long, and if no exchange was broken."""
        before = self.faults
        script = {"js": "many.mjs", "py": "many.py"}[language]
        [ended] = getattr(self.clients, language)(script, **options)
        assert self.faults > before, "no exchange was broken: nothing was tried"
        assert max(call["ms"] for call in ended) < PATIENCE_MS
        return ended

    def done_twice(self) -> int:
        """Requests that the server has run more often than once each.

        A run's id is in the log once for each time that it was answered, or left by its client; the engines' count may
        not be above that. A job's is there for each submit that was answered; each may be in the database once, claimed
        once.
        """
        made = self.count(MADE, 'priority="run"')
        log = self.server.log
        runs = max(0, made - len(set(_RUN_LINE.findall(log))))
        submits = Counter(_SUBMIT_LINE.findall(log))
        with contextlib.closing(sqlite3.connect(self.server.data_dir / "jobs.sqlite")) as connection:
            claims = dict(connection.execute("SELECT id, fence FROM jobs"))
        return runs + sum(claims[identity] != 1 or times != 1 for identity, times in submits.items())


@contextlib.contextmanager
def faulty(data_dir: Path, picture: str, *flags: str, program: Sequence[str] = ()) -> Iterator[Faulty]:
    """fal's names lead to the proxy on port 443, and from there to the server; `program` is another than `fourstep`."""
    log = data_dir / "faults"
    told = ("8443", "--model", "instant", *flags)
    with taking_over(data_dir, picture, *told, door="--tls-port", program=program) as server, log.open("wb") as out:
        proxy = subprocess.Popen(server.sandbox.wrap([sys.executable, str(PROXY), "443", "8443", EVERY]), stdout=out)
        try:
            server.sandbox.run(
                "import socket, time\nwhile socket.socket().connect_ex(('127.0.0.1', 443)): time.sleep(0.05)"
            )
            yield Faulty(server, log)
        finally:
            proxy.terminate()
            proxy.wait()

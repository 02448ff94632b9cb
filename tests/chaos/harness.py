"""A server that can be killed and restarted, clients that keep calling it, and the history of its jobs."""

import collections
import contextlib
import hashlib
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

from server.jobs.sqlite.database import Database
from tests.support.server_process import APP, clean_env, free_port

PICTURE = "data:image/jpeg;base64,/9j/"  # an instant engine decodes nothing
POLL_S = 0.02
PATIENCE_S = 60.0  # of these programs, on a busy machine

# Written by a trigger in the publishing transaction, so that no publication is missed.
_WITNESS = """
CREATE TABLE witness (job INTEGER NOT NULL);
CREATE TRIGGER published AFTER UPDATE OF status ON jobs WHEN NEW.status = 'COMPLETED'
BEGIN INSERT INTO witness VALUES (NEW.seq); END;
"""
# How often each job was published, claimed, and run again by the pool because its engine had ended.
_HISTORY = """
SELECT jobs.id, jobs.status, jobs.fence, jobs.attempts,
       (SELECT count(*) FROM witness WHERE witness.job = jobs.seq),
       (SELECT count(*) FROM events WHERE events.job = jobs.seq AND events.message LIKE 'The engine ended%')
FROM jobs
"""

History = collections.namedtuple("History", "id status claims tries published reruns")


class Failed(Exception):
    """The program itself failed: no figures."""


def add_witness(database):
    """Create the database, with a table that gets a row for each publication."""
    Database(database)._close()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(_WITNESS)


def history(database):
    """Return the history of every job."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [History(*row) for row in connection.execute(_HISTORY)]


def until(condition, what, timeout=PATIENCE_S):
    """Poll until `condition()` is true, and return its value. Raises `Failed` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"not within {timeout:.0f} s: {what}")
        time.sleep(POLL_S)
    return value


class Victim:
    """A server on `folder` that keeps its port. `differences`: those of `tests.chaos.modified_server`."""

    def __init__(self, folder, *flags, **differences):
        self.folder = folder
        self.database = folder / "jobs.sqlite"
        self.log = folder / "log"
        self.port = free_port()
        self.back_s = []  # seconds from each start until it answered
        self._command = [sys.executable, "-m", "tests.chaos.modified_server", json.dumps(differences), "serve"]
        self._command += ["--data-dir", str(folder), "--port", str(self.port), *flags]
        self._process = None
        add_witness(self.database)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        if self._process is not None:
            self.kill()

    def start(self):
        """Start the server; return when it answers."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log, env=clean_env())
        until(lambda: self.health() or self._process.poll() is not None, "the server answers")
        if self._process.poll() is not None:
            raise Failed(self.log.read_text()[-2000:])
        self.back_s.append(time.monotonic() - began)

    def kill(self):
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def frozen(self):
        """Stop the server's process by SIGSTOP within the context."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self):
        """Send SIGTERM; return the seconds until the exit. Raises `Failed` if it is late or not with status 0."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Failed("SIGTERM does not end the server") from None
        if status:
            raise Failed(f"stopped with status {status}")
        return time.monotonic() - began

    def signal_engine(self, number):
        """Send the engine a signal; return its process id, None if there is no engine."""
        health = self.health()
        pid = health and health["engines"][0]["pid"]
        if not pid:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def wait_ready(self, but_not=None):
        """Return when an engine serves that is not process `but_not`."""

        def ready():
            health = self.health()
            return health and health["state"] in {"READY", "BUSY"} and health["engines"][0]["pid"] != but_not

        until(ready, "an engine is ready")

    def health(self):
        """Return the health report, None while the server does not answer."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return call(self.port, "GET", "/health")[1]


def shares(total, count):
    """Split `total` into `count` nearly equal parts."""
    return [total * (part + 1) // count - total * part // count for part in range(count)]


def call(port, method, path, body=None, timeout=20, *, headers=None):
    """Return status and JSON of one call on a new connection. Raises `OSError` and `HTTPException`."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        headers = {"Content-Type": "application/json"} | (headers or {})
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


class Clients:
    """Threads that each submit a job and wait for its result, for the number of jobs given to `allow`.

    `accepted`: request id → seed, of submits answered with 200. `results`: request id → digest of the result.
    `server_errors`: how many answers were 5xx.
    """

    def __init__(self, port, count=4, query=lambda: "", prompt=""):
        self.accepted = {}
        self.results = {}
        self.server_errors = 0
        self._port = port
        self._query = query
        self._prompt = prompt
        self._permits = threading.Semaphore(0)
        self._given = 0
        self._done = threading.Event()
        self._seeds = iter(range(1, 1 << 30))
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def allow(self, jobs):
        """Allow this number of further submits."""
        self._given += jobs
        self._permits.release(jobs)

    def left(self):
        """Return the number of allowed jobs without a result."""
        return self._given - len(self.results)

    def join(self, timeout):
        """Wait until all allowed jobs have their results. Raises `Failed`."""
        try:
            until(lambda: self.left() <= 0, "every client has its results", timeout)
        finally:
            self.close()

    def close(self):
        self._done.set()
        self._permits.release(len(self._threads))
        for thread in self._threads:
            thread.join()

    def _run(self):
        while self._permits.acquire() and not self._done.is_set():
            seed = next(self._seeds)
            body = {"prompt": self._prompt, "image_url": PICTURE, "seed": seed}
            status, answer = self._insist("POST", f"/queue/{APP}{self._query()}", body)
            if status != 200:
                continue  # refused for good, or closing
            request_id = answer["request_id"]
            self.accepted[request_id] = seed
            self._follow(request_id)

    def _follow(self, request_id):
        path = f"/queue/{APP}/requests/{request_id}"
        while not self._done.is_set():
            status, _ = self._insist("GET", f"{path}/status")
            if status == 404:
                self.results[request_id] = None  # lost: the audit counts it
                return
            if status == 200:
                self.results[request_id] = digest(*self._insist("GET", path))
                return
            time.sleep(POLL_S)

    def _insist(self, method, path, body=None):
        """Call until there is an answer other than 429; 0 when closing."""
        while not self._done.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, answer = call(self._port, method, path, body)
                self.server_errors += status >= 500
                if status != 429:
                    return status, answer
            time.sleep(POLL_S)
        return 0, None


def digest(status, result):
    """Return a digest of a result, different for two runs of one job; None for a call without answer."""
    if not status:
        return None
    return hashlib.sha256(json.dumps([status, result], sort_keys=True).encode()).hexdigest()

"""R10c: three servers on one PostgreSQL behind HAProxy are restarted in turn, under clients of all kinds."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from pipelines.messages import Priority
from server.jobs.postgres.migrations import migrate
from tests.chaos.harness import PICTURE, Failed, call, until
from tests.support.haproxy import BOXES, three_boxes
from tests.support.postgres import cluster
from tests.support.server_process import APP

INPUT = {"prompt": "", "image_url": PICTURE, "seed": 1, "sync_mode": True}
PAUSE_S = 0.1  # of a client between two frames, runs or looks: others need time to start servers
STUCK_S = 10.0
CLIENTS = {"run": 6, "realtime": 3, "queue": 2, "stream": 3}
# The balancer tries a refused connection on another box, which hides most of what a box without lame duck does.
ONE_TRY = {"retries 3": "retries 0", "option redispatch 1": "no option redispatch"}


class Load:
    """Clients of one balancer, each in a thread. `failures`: what was said to calls that did not get what they asked.

    `moves_ms`: from a socket's close to the next one's opening. `odd_closes`: with another code than 1000.
    `streams_cut`: streams that ended before their job, which fal's JavaScript client takes for the job's end.
    """

    def __init__(self, port):
        self.calls = 0
        self.failures = []
        self.moves_ms = []
        self.odd_closes = self.streams_cut = 0
        self._port = port
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._streams = set()  # open connections

    @contextlib.contextmanager
    def running(self):
        """Context in which the clients call."""
        clients = [getattr(self, kind) for kind, count in CLIENTS.items() for _ in range(count)]
        threads = [threading.Thread(target=client) for client in clients]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._cut_streams()
            for thread in threads:
                thread.join()

    def run(self):
        """One run after the other, each on a connection of its own."""
        while not self._stopped.wait(PAUSE_S):
            self._call("POST", f"/run/{APP}", INPUT)

    def queue(self):
        """One job after the other: submit, poll, fetch, each on a connection of its own."""
        while not self._stopped.wait(PAUSE_S):
            if accepted := self._call("POST", f"/queue/{APP}", INPUT):
                job = f"/queue/{APP}/requests/{accepted['request_id']}"
                while (said := self._call("GET", f"{job}/status")) and said["status"] != "COMPLETED":
                    time.sleep(PAUSE_S)
                self._call("GET", job)

    def stream(self):
        """Follow one late job after the other by its stream; by the next stream, where one ends before the job."""
        while not self._stopped.is_set():
            if accepted := self._call("POST", f"/queue/{APP}", INPUT, {"X-Fal-Queue-Priority": "low"}):
                job = f"/queue/{APP}/requests/{accepted['request_id']}"
                while (last := self._follow(f"{job}/status/stream")) and last["status"] != "COMPLETED":
                    self.streams_cut += 1
                if last:
                    self._call("GET", job)

    def realtime(self):
        """Frames on one socket; when it is closed, on the next one. What a close left unanswered is sent again."""
        closed_at = None
        while not self._stopped.is_set():
            try:
                url = f"ws://127.0.0.1:{self._port}/run/{APP}/realtime"
                with connect(url, open_timeout=STUCK_S, close_timeout=1) as websocket:
                    if closed_at is not None:
                        self.moves_ms.append((time.monotonic() - closed_at) * 1e3)
                    code = self._draw(websocket)
                    closed_at = time.monotonic()
            except (OSError, InvalidHandshake) as error:
                self._note(type(error).__name__)
                closed_at = None
            else:
                self.odd_closes += code not in {None, 1000}

    def _draw(self, websocket):
        """Send frames until the socket is closed, and return its code; None when the load ends."""
        while not self._stopped.wait(PAUSE_S):
            try:
                websocket.send(json.dumps(INPUT))
                answer = json.loads(websocket.recv(timeout=STUCK_S))
            except ConnectionClosed as error:
                return error.rcvd.code if error.rcvd else 1006
            self._note(None if "images" in answer else f"{answer.get('error')}")
        return None

    def _call(self, method, path, body=None, headers=None):
        """Return the JSON of one call; None if it failed."""
        what = path.partition("/requests/")[0] + path.partition("/requests/")[2][36:]
        try:
            status, answer = call(self._port, method, path, body, headers=headers)
        except (OSError, http.client.HTTPException) as error:
            self._note(f"{method} {what}: {type(error).__name__}")
            return None
        self._note(None if status in {200, 202} else f"{method} {what}: status {status}")
        return answer if status in {200, 202} else None

    def _follow(self, path):
        """Return the last status that a stream tells; None if it failed, or the load has ended."""
        failure, events = None, []
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=STUCK_S)) as connection:
            try:
                connection.connect()
                with self._open(connection.sock):
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
                if not events:
                    failure = f"GET status/stream: status {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                failure = f"GET status/stream: {type(error).__name__}"
        if self._stopped.is_set():
            return None
        self._note(failure)
        return None if failure else events[-1]

    @contextlib.contextmanager
    def _open(self, sock):
        """Context of a stream on a socket, which is cut when the load ends."""
        with self._lock:
            self._streams.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._streams.discard(sock)

    def _cut_streams(self):
        with self._lock:
            for each in self._streams:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _note(self, failure):
        with self._lock:
            self.calls += 1
            if failure:
                self.failures.append(failure)


def _long_queue(wait_s):
    """Return the SQL by which jobs of low priority wait for so long, as behind a long queue."""
    return (
        f"""CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN NEW.not_before := NEW.submitted_at + {wait_s}; RETURN NEW; END $$""",
        f"""CREATE TRIGGER late BEFORE INSERT ON jobs
            FOR EACH ROW WHEN (NEW.priority = {Priority.LOW:d}) EXECUTE FUNCTION late()""",
    )


@contextlib.contextmanager
def fleet(folder, *flags, wait_s, changes):
    """Context of three servers on one database, and their balancer. `changes`: as of `balancing`."""
    shared = folder / "shared"
    shared.mkdir()
    with cluster() as database:
        asyncio.run(migrate(database.url()))
        asyncio.run(database.execute(*_long_queue(wait_s)))
        env = {"FOURSTEP_DATABASE": database.url(), "FOURSTEP_FILES": f"file://{shared}"}
        with three_boxes(folder, *flags, env=env, changes=changes) as running:
            yield running


def rolled(folder, calls, *, restarts=BOXES, lameduck=3, drain_timeout=15, wait_s=5, one_try=False):
    """Restart three servers in turn, so often and until so many calls were made; return what was seen.

    `lameduck`, `drain_timeout`: seconds. `wait_s`: of jobs that streams follow: longer than a lame duck, so that their
    boxes leave. `one_try`: the balancer tries no other box.
    """
    done = 0
    flags = ("--lameduck", str(lameduck), "--drain-timeout", str(drain_timeout))
    with fleet(folder, *flags, wait_s=wait_s, changes=ONE_TRY if one_try else None) as (boxes, balancer):
        load = Load(balancer.http_port)
        with load.running():
            until(lambda: load.calls > 100, "calls are answered")
            while done < restarts or load.calls < calls:
                box = boxes[done % len(boxes)]
                if box.server.stop():
                    raise Failed((box.folder / "log").read_text()[-2000:])
                box.start()
                balancer.wait_up("run", 1, 2, 3)
                done += 1
            enough = load.calls + 50
            until(lambda: load.calls > enough, "calls are answered at the end")
    for failure in sorted(set(load.failures)):
        print(f"    failed {load.failures.count(failure)} times: {failure}", flush=True)
    return {
        "restarts": done,
        "calls": load.calls,
        "failed": len(load.failures),
        "sockets_moved": len(load.moves_ms),
        "closed_otherwise": load.odd_closes,
        "streams_cut": load.streams_cut,
        "slowest_move_ms": round(max(load.moves_ms, default=0.0), 1),
    }

"""R10c: three servers behind HAProxy are restarted in turn, by SIGTERM, while clients run pictures and keep sockets."""

import contextlib
import http.client
import json
import threading
import time

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from tests.chaos.harness import PICTURE, Failed, call, until
from tests.support.haproxy import three_boxes
from tests.support.server_process import APP

INPUT = {"prompt": "", "image_url": PICTURE, "seed": 1, "sync_mode": True}
FRAME_S = 0.1  # between two frames of a client, which draws
STUCK_S = 10.0
RUNS, SOCKETS = 6, 3
# The balancer tries a refused connection on another box, which hides most of what a box without lame duck does.
ONE_TRY = {"retries 3": "retries 0", "option redispatch 1": "no option redispatch"}


class Load:
    """Clients of one balancer, each in a thread. `failures`: what was said to calls that got no picture."""

    def __init__(self, port):
        self.calls = 0
        self.failures = []
        self.moves_ms = []  # from a socket's close to the next one's opening
        self.odd_closes = 0  # with another code than 1000
        self._port = port
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self, kinds):
        """`kinds`: how many clients of each of the methods `run`, `realtime`."""
        clients = [getattr(self, kind) for kind, count in kinds.items() for _ in range(count)]
        threads = [threading.Thread(target=client) for client in clients]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def run(self):
        """One run after the other, each on a connection of its own."""
        while not self._stopped.is_set():
            try:
                status, _ = call(self._port, "POST", f"/run/{APP}", INPUT)
                self._note(None if status == 200 else f"status {status}")
            except (OSError, http.client.HTTPException) as error:
                self._note(type(error).__name__)

    def realtime(self):
        """Frames on one socket; when it is closed, on the next one. What a close left unanswered is sent again."""
        closed_at = None
        while not self._stopped.is_set():
            try:
                url = f"ws://127.0.0.1:{self._port}/run/{APP}/realtime"
                with connect(url, open_timeout=STUCK_S, close_timeout=1) as socket:
                    if closed_at is not None:
                        self.moves_ms.append((time.monotonic() - closed_at) * 1e3)
                    code = self._draw(socket)
                    closed_at = time.monotonic()
            except (OSError, InvalidHandshake) as error:
                self._note(type(error).__name__)
                closed_at = None
            else:
                self.odd_closes += code not in {None, 1000}

    def _draw(self, socket):
        """Send frames until the socket is closed, and return its code; None when the load ends."""
        while not self._stopped.wait(FRAME_S):
            try:
                socket.send(json.dumps(INPUT))
                answer = json.loads(socket.recv(timeout=STUCK_S))
            except ConnectionClosed as error:
                return error.rcvd.code if error.rcvd else 1006
            self._note(None if "images" in answer else f"{answer.get('error')}")
        return None

    def _note(self, failure):
        with self._lock:
            self.calls += 1
            if failure:
                self.failures.append(failure)


def rolled(folder, calls, *, lameduck=3, one_try=False, kinds=None):
    """Restart each of three servers, and again until so many calls were made; return what was seen.

    `one_try`: the balancer tries no other box.
    """
    restarts = 0
    with three_boxes(folder, "--lameduck", str(lameduck), changes=ONE_TRY if one_try else None) as (boxes, balancer):
        load = Load(balancer.http_port)
        with load.running(kinds or {"run": RUNS, "realtime": SOCKETS}):
            until(lambda: load.calls > 100, "calls are answered")
            while restarts < len(boxes) or load.calls < calls:
                box = boxes[restarts % len(boxes)]
                if box.server.stop():
                    raise Failed((box.folder / "log").read_text()[-2000:])
                box.start()
                balancer.wait_up("run", 1, 2, 3)
                restarts += 1
            enough = load.calls + 50
            until(lambda: load.calls > enough, "calls are answered at the end")
    for failure in sorted(set(load.failures)):
        print(f"    failed {load.failures.count(failure)} times: {failure}", flush=True)
    return {
        "restarts": restarts,
        "calls": load.calls,
        "failed": len(load.failures),
        "sockets_moved": len(load.moves_ms),
        "closed_otherwise": load.odd_closes,
        "slowest_move_ms": round(max(load.moves_ms, default=0.0), 1),
    }

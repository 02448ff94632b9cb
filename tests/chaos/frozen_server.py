"""R1 with the server itself frozen: SIGSTOP for longer than its leases, pings and deadlines last, then SIGCONT.

No client may notice more than a pause. Before the freeze, realtime sockets have an input in flight, a run and an upload
are under way and queue jobs are running; during it, sockets get another input and the upload the rest of its bytes. All
of these must be answered on their connections, no job may be claimed again, no engine replaced, and every webhook must
arrive.
"""

import contextlib
import http.client
import json
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.chaos.harness import PICTURE, Clients, Victim, call, history
from tests.chaos.webhook_delivery import Receivers, settle
from tests.support.server_process import APP

# A fraction of what ships, so that the server need not be frozen for a minute; all are over when it comes back.
WAITS = ("--ping-interval", "3", "--session-idle-timeout", "5", "--body-timeout", "5", "--header-timeout", "3")
LEASE_S, HEARTBEAT_S, FROZEN_S = 6.0, 1.5, 9.0
WORK = "instant:1500"
SOCKETS = 4
ARRIVAL_S = 0.5  # until what was sent is with the engines
PATIENCE_S = 30


def frozen(folder, freezes, **differences):
    """Freeze the server `freezes` times; return what became of the work in flight."""
    seen = {"sockets_lost": 0, "calls_lost": 0, "uploads_lost": 0}
    receivers = Receivers(failing=0.0, hanging=0.0)
    waits = {"lease_s": LEASE_S, "heartbeat_s": HEARTBEAT_S, **differences}
    try:
        with Victim(folder, "--model", WORK, "--allow-net", "127.0.0.1", *WAITS, **waits) as victim:
            victim.wait_ready()
            clients = Clients(
                victim.port, count=2, query=lambda: "?" + urllib.parse.urlencode({"fal_webhook": receivers.url()})
            )
            try:
                for _ in range(freezes):
                    freeze_once(victim, clients, seen)
                clients.join(timeout=60 + 20 * freezes)
            finally:
                clients.close()
            settle(receivers, clients.accepted)
            restarts = victim.health()["engines"][0]["restarts"]
            victim.stop()
    finally:
        receivers.close()
    jobs = history(victim.database)
    return {
        "freezes": freezes,
        "jobs": len(jobs),
        **seen,
        "engines_replaced": restarts,
        "claimed_again": sum(job.claims > 1 for job in jobs),
        "published_twice": sum(job.published > 1 for job in jobs),
        "never_published": sum(job.published == 0 for job in jobs),
        "undelivered": sum(not receivers.taken[request_id] for request_id in clients.accepted),
    }


def freeze_once(victim, clients, seen):
    """One freeze, with work of every kind in flight."""
    begun, stopped = threading.Barrier(SOCKETS + 3), threading.Event()
    with ThreadPoolExecutor(SOCKETS + 2) as threads:
        sockets = [threads.submit(talk, victim.port, begun, stopped, idle=number % 2) for number in range(SOCKETS)]
        running = threads.submit(run, victim.port, begun)
        uploading = threads.submit(upload, victim.port, begun, stopped)
        begun.wait(PATIENCE_S)
        clients.allow(2)
        time.sleep(ARRIVAL_S)
        with victim.frozen():
            stopped.set()
            time.sleep(FROZEN_S)
        seen["sockets_lost"] += sum(not socket.result() for socket in sockets)
        seen["calls_lost"] += not running.result()
        seen["uploads_lost"] += not uploading.result()


def talk(port, begun, stopped, *, idle):
    """Return whether a realtime socket answers what was sent before, in and after the freeze.

    An `idle` one has nothing in flight when the freeze comes.
    """
    picture = {"prompt": "", "image_url": PICTURE, "sync_mode": True}
    with connect(f"ws://127.0.0.1:{port}/run/{APP}/realtime?max_buffering=10", ping_interval=None) as socket:
        try:
            if not idle:
                begun.wait(PATIENCE_S)
            socket.send(json.dumps({**picture, "seed": 1}))
            answers = [json.loads(socket.recv(PATIENCE_S)).get("seed")] if idle else []
            if idle:
                begun.wait(PATIENCE_S)
            stopped.wait(PATIENCE_S)
            socket.send(json.dumps({**picture, "seed": 2}))
            answers += [json.loads(socket.recv(PATIENCE_S)).get("seed") for _ in range(2 - len(answers))]
            socket.send(json.dumps({**picture, "seed": 3}))
            return [*answers, json.loads(socket.recv(PATIENCE_S)).get("seed")] == [1, 2, 3]
        except (ConnectionClosed, TimeoutError):
            return False


def run(port, begun):
    """Return whether a run that was under way is answered."""
    begun.wait(PATIENCE_S)
    with contextlib.suppress(OSError, http.client.HTTPException):
        return call(port, "POST", f"/run/{APP}", {"prompt": "", "image_url": PICTURE}, PATIENCE_S)[0] == 200
    return False


def upload(port, begun, stopped):
    """Return whether an upload is stored whose second half is sent during the freeze."""
    half = bytes(300_000)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.putrequest("POST", "/cdn/files/upload")
        connection.putheader("Content-Length", str(2 * len(half)))
        connection.endheaders(half)
        begun.wait(PATIENCE_S)
        stopped.wait(PATIENCE_S)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.send(half)
            return connection.getresponse().status == 200
        return False

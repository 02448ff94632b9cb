"""R3 and R3c: webhooks to receivers of which some fail and some hang at first, while the server is killed, or servers.

R3c has three servers on one PostgreSQL behind HAProxy, of which one after the other is killed.
"""

import asyncio
import base64
import collections
import contextlib
import hashlib
import http.server
import random
import threading
import time
import urllib.parse

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.jobs.postgres.migrations import migrate
from tests.chaos.fleet import boxes_on, cause
from tests.chaos.harness import Clients, Victim, call, shares, until
from tests.support.haproxy import BOXES, balancing
from tests.support.postgres import cluster

FAILING, HANGING = 0.30, 0.05  # of the receivers
REFUSALS = 2  # how often each of those does so before it takes a delivery
SCALE = 1e-3  # of the waits: the first after 7 ms, the tenth after 3.6 s; as shipped: 7 s and an hour
TIMEOUT_S = 1.0  # as shipped: 15
# Three servers and a database share the machine: what is late there must not count as refused, eleven times in a row.
SHARED = {"webhook_scale": 4 * SCALE, "webhook_timeout_s": 2 * TIMEOUT_S, "webhook_lease_s": 4 * TIMEOUT_S}
SIGNED = ("Request-Id", "User-Id", "Timestamp")
OLDEST_S = 300  # of a timestamp, as fal tells receivers to check


class Receivers:
    """Three origins: one takes everything, one refuses each webhook at first, one does not answer at first.

    `taken`: request id → deliveries answered with 200. `heard`: when, headers and body of every attempt.
    `torn`: attempts of which not all came.
    """

    def __init__(self, seed=0, failing=FAILING, hanging=HANGING):
        self.taken = collections.Counter()
        self.heard = []
        self.torn = 0
        self._failing, self._hanging = failing, hanging
        self._chance = random.Random(seed)
        self._tries = collections.Counter()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._servers = {kind: self._listen(kind) for kind in ("good", "failing", "hanging")}

    def url(self):
        """Return the URL for the next job's webhook."""
        with self._lock:
            draw = self._chance.random()
        kind = "hanging" if draw < self._hanging else "failing" if draw < self._hanging + self._failing else "good"
        return f"http://127.0.0.1:{self._servers[kind].server_port}/{kind}"

    def close(self):
        self._over.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def _listen(self, kind):
        receivers = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers["Content-Length"])
                body = self.rfile.read(size)
                if len(body) == size:
                    receivers.hear(kind, self, body)
                else:
                    receivers.torn += 1  # its server was killed while it sent

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def hear(self, kind, handler, body):
        request_id = handler.headers["X-Fal-Webhook-Request-Id"]
        with self._lock:
            self.heard.append((time.time(), dict(handler.headers), body))
            self._tries[request_id] += 1
            takes = kind == "good" or self._tries[request_id] > REFUSALS
            self.taken[request_id] += takes
        if not takes and kind == "hanging":
            self._over.wait(8 * TIMEOUT_S)
            return
        handler.send_response(200 if takes else 500)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


def delivered(folder, jobs, *, kills, no_retries=False):
    """R3. Kill the server `kills` times meanwhile; return what the receivers saw."""
    receivers = Receivers()
    allowed = ("--model", "instant", "--allow-net", "127.0.0.1")
    differences = {"webhook_scale": SCALE, "webhook_timeout_s": TIMEOUT_S, "no_retries": no_retries}
    try:
        with Victim(folder, *allowed, **differences) as victim:
            victim.wait_ready()
            clients = Clients(victim.port, query=lambda: "?" + urllib.parse.urlencode({"fal_webhook": receivers.url()}))
            chance = random.Random(jobs)
            try:
                for share in shares(jobs, kills):
                    clients.allow(share)
                    time.sleep(chance.uniform(0.3, 1.0))
                    victim.kill()
                    victim.start()
                    victim.wait_ready()
                clients.join(timeout=60 + jobs / 5)
            finally:
                clients.close()
            settle(receivers, clients.accepted)
            jwks = call(victim.port, "GET", "/.well-known/jwks.json")[1]
            victim.stop()
    finally:
        receivers.close()
    return seen(receivers, clients, kills, jwks)


def delivered_by_several(folder, jobs, *, kills, **differences):
    """R3c. Kill one of the servers `kills` times in turn; return what the receivers saw.

    `differences`: those of the modified server.
    """
    chance = random.Random(jobs)
    with contextlib.ExitStack() as stack:
        receivers = stack.enter_context(contextlib.closing(Receivers()))
        database = stack.enter_context(cluster())
        asyncio.run(migrate(database.url()))
        servers = boxes_on(folder, database.url(), BOXES, flags=("--allow-net", "127.0.0.1"), **SHARED, **differences)
        boxes = stack.enter_context(servers)
        balancer = stack.enter_context(balancing(folder / "balancer", [f"127.0.0.1:{box.port}" for box in boxes]))
        query = lambda: "?" + urllib.parse.urlencode({"fal_webhook": receivers.url()})  # noqa: E731
        clients = stack.enter_context(contextlib.closing(Clients(balancer.http_port, query=query)))
        for number, share in enumerate(shares(jobs, kills)):
            clients.allow(share)
            time.sleep(chance.uniform(0.3, 1.0))
            cause(boxes[number % BOXES], "box killed", chance)
        clients.join(timeout=60 + jobs / 5)
        settle(receivers, clients.accepted, quiet_s=16 * TIMEOUT_S)
        jwks = call(balancer.http_port, "GET", "/.well-known/jwks.json")[1]
    return seen(receivers, clients, kills, jwks)


def seen(receivers, clients, kills, jwks):
    """Return the figures of what the receivers saw."""
    taken = [receivers.taken[request_id] for request_id in clients.accepted]
    return {
        "jobs": len(taken),
        "kills": kills,
        "attempts": len(receivers.heard),
        "torn_attempts": receivers.torn,
        "undelivered": taken.count(0),
        "twice_percent": round(100 * sum(count > 1 for count in taken) / len(taken), 2),
        "bad_signatures": sum(not signed(jwks, *heard) for heard in receivers.heard),
        "tampered_passed": sum(signed(jwks, at, headers, body + b" ") for at, headers, body in receivers.heard),
    }


def settle(receivers, accepted, quiet_s=4 * TIMEOUT_S):
    """Return when all are delivered, or none has come for longer than any attempt takes."""
    count, since = -1, time.monotonic()

    def settled():
        nonlocal count, since
        if len(receivers.heard) != count:
            count, since = len(receivers.heard), time.monotonic()
        return all(receivers.taken[request_id] for request_id in accepted) or time.monotonic() - since > quiet_s

    until(settled, "the webhooks come to rest", timeout=120)


def signed(jwks, at, headers, body):
    """Return whether a receiver accepts what it got at that time, by fal's documented steps."""
    values = [headers[f"X-Fal-Webhook-{name}"] for name in SIGNED]
    if abs(at - int(values[-1])) > OLDEST_S:
        return False
    message = "\n".join([*values, hashlib.sha256(body).hexdigest()]).encode()
    for key in jwks["keys"]:
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
        try:
            public.verify(bytes.fromhex(headers["X-Fal-Webhook-Signature"]), message)
        except InvalidSignature:
            continue
        return True
    return False

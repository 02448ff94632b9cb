"""The good client of `tests.chaos.neighbours`: one run after the other on new connections, and a probe beside."""

import asyncio
import contextlib
import dataclasses
import http.server
import json
import threading
import time

from tests.chaos.exchange import exchange, written
from tests.chaos.harness import Failed
from tests.fuzz.values import pictures
from tests.support.server_process import APP

GOOD = "good:a"
PATIENCE_S = 10.0
PAUSE_S = 0.02
PROBE_S = 0.25


@dataclasses.dataclass
class Seen:
    """What the good client and the probe saw. `walls`: milliseconds of each run, also of those that were refused."""

    walls: list[float] = dataclasses.field(default_factory=list)
    refused: int = 0
    probes: int = 0
    probes_refused: int = 0

    def quantile(self, q):
        ordered = sorted(self.walls)
        return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 1)


def run_of(image_url):
    body = json.dumps({"prompt": "p", "image_url": image_url, "seed": 1}).encode()
    return written("POST", f"/run/{APP}", GOOD, body)


async def tried(port, request):
    """Return whether a request was answered with 200 in time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            status, _ = await exchange(port, request)
    except TimeoutError:
        return False
    return status == 200


async def observed(port, request, seconds):
    """Return what the good client and the probe see for some seconds."""
    seen, end = Seen(), time.perf_counter() + seconds

    async def runs():
        while time.perf_counter() < end:
            began = time.perf_counter()
            seen.refused += not await tried(port, request)
            seen.walls.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(PAUSE_S)

    async def probes():
        while time.perf_counter() < end:
            seen.probes += 1
            seen.probes_refused += not await tried(port, written("GET", "/health", GOOD))
            await asyncio.sleep(PROBE_S)

    await asyncio.gather(runs(), probes())
    return seen


@contextlib.contextmanager
def picture_server():
    """Yield the URL, by host name, of a small picture."""
    picture = pictures()["jpeg"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/p.jpg"
        server.shutdown()


def stored_picture(port):
    """Return the URL of a small picture that the good key has uploaded."""
    status, body = asyncio.run(exchange(port, written("POST", "/cdn/files/upload", GOOD, pictures()["jpeg"])))
    if status != 200:
        raise Failed(f"the good client's upload was answered {status}")
    return json.loads(body)["access_url"]

"""What the balancer in front of several boxes costs: one server asked directly and through HAProxy, in turn.

    python -m benchmarks.fleet [--requests 300] [--frames 600]

Each pair is one request directly and the same one through `deploy/haproxy.cfg`, in an order that changes from pair to
pair, so that whatever else the machine does falls on both. The engine has no model; it decodes and encodes a picture.

    run          one keep-alive connection to either; HAProxy opens one to the server for each request
    realtime     one socket to either, 30 frames a second on each

Prints a table; the last line is JSON. `added`: the median of the pairs' differences, in milliseconds.
"""

import argparse
import base64
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

from benchmarks.harness.http import APP, PICTURE, Client, arguments, serving
from tests.support.haproxy import balancing

FRAMES_S = 30
WARM_UP = 20
GATES = {"run": 1.0, "realtime": 2.0}


def padded(kilobytes, **fields):
    """Return a request of so many kilobytes: behind its end a JPEG may have anything."""
    size = kilobytes * 3 // 4 * 1000
    picture = PICTURE.read_bytes()
    body = {**arguments(**fields)}
    body["image_url"] = f"data:image/jpeg;base64,{base64.b64encode(picture.ljust(size, b' ')).decode()}"
    return json.dumps(body)


def pairs(direct, through, count, every_s=0.0):
    """Return the seconds of each call, directly and through, and the bytes of the last answer."""
    walls = {"direct": [], "through": []}
    sides = [("direct", direct), ("through", through)]
    due = time.perf_counter()
    for number in range(-WARM_UP, count):
        due += every_s
        time.sleep(max(0.0, due - time.perf_counter()))
        for name, call in sides if number % 2 else reversed(sides):
            began = time.perf_counter()
            answer = call()
            if number >= 0:
                walls[name].append(time.perf_counter() - began)
    return walls, len(answer)


def row(walls, sent, received):
    """Return the figures of one case, times in milliseconds."""
    added = [through - direct for direct, through in zip(walls["direct"], walls["through"], strict=True)]
    figures = {f"{name}_p50": statistics.median(found) for name, found in walls.items()}
    figures |= {"added_p50": statistics.median(added), "added_p95": statistics.quantiles(added, n=20)[-1]}
    return {name: round(seconds * 1e3, 3) for name, seconds in figures.items()} | {"sent": sent, "received": received}


def run(server, balancer, count):
    """Runs, one after the other."""
    body = padded(60).encode()
    direct, through = Client(server.url), Client(balancer.url)
    with contextlib.closing(direct), contextlib.closing(through):
        path = f"/run/{APP}"
        walls, received = pairs(
            lambda: direct.call("POST", path, body), lambda: through.call("POST", path, body), count
        )
    return row(walls, len(body), received)


def realtime(server, balancer, count):
    """Frames at the pace of a page that draws."""
    frame = padded(120, num_images=2)
    options = {"max_size": None, "compression": None}
    with (
        connect(f"ws://{server.host}/run/{APP}/realtime", **options) as direct,
        connect(f"ws://127.0.0.1:{balancer.http_port}/run/{APP}/realtime", **options) as through,
    ):

        def call(socket):
            socket.send(frame)
            return socket.recv()

        walls, received = pairs(lambda: call(direct), lambda: call(through), count, every_s=1 / FRAMES_S)
    return row(walls, len(frame), received)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--frames", type=int, default=600)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("--model", "instant+jpeg", "--jpeg-quality", "86") as server,
        balancing(Path(folder) / "balancer", [server.host]) as balancer,
    ):
        cases = {
            "run": run(server, balancer, options.requests),
            "realtime": realtime(server, balancer, options.frames),
        }
    for name, figures in cases.items():
        print(f"{name:<10}" + "  ".join(f"{key} {value:g}" for key, value in figures.items()) + f"  gate {GATES[name]}")
    print(json.dumps(vars(options) | {"cases": cases}))


if __name__ == "__main__":
    main()

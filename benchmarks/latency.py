"""Latency of one client, one request at a time: wall time, the engine's time by stage, and the server's overhead.

    python -m benchmarks.latency [--model instant:5 | demo | …] [--requests 200] [--awake] [--url http://127.0.0.1:8000]

Talks over one keep-alive loopback socket, so that connecting is not counted. Overhead is the wall clock minus
`timings.inference`, which the engine measures itself. On an idle machine most of it is the wake-up of cores, once per
thread that a request passes; `--awake` keeps cores busy, so that only work remains. Prints a table; the last line is
JSON.
"""

import argparse
import contextlib
import json
import statistics
import time

import msgspec
from websockets.sync.client import connect

from benchmarks.harness.http import APP, PICTURE, Client, arguments, awake, serving


def measure(call, count, warm_up=5):
    """Return wall seconds and answers of `count` calls, after `warm_up` calls."""
    for _ in range(warm_up):
        call()
    walls, answers = [], []
    for _ in range(count):
        start = time.perf_counter()
        answers.append(call())
        walls.append(time.perf_counter() - start)
    return walls, answers


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def summary(walls, answers):
    """Return p50/p95/p99 of wall and overhead, and the median of every stage, in milliseconds."""
    engine = [answer["timings"]["inference"] for answer in answers]
    overhead = [wall - inside for wall, inside in zip(walls, engine, strict=True)]
    row = {f"wall_p{round(q * 100)}": quantile(walls, q) * 1e3 for q in (0.5, 0.95, 0.99)}
    row |= {f"overhead_p{round(q * 100)}": quantile(overhead, q) * 1e3 for q in (0.5, 0.95)}
    stages = {
        name: statistics.median(a["timings"].get(name, 0) for a in answers) * 1e3 for name in answers[0]["timings"]
    }
    return row | {"stages": stages}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="instant:5")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--awake", action="store_true", help="keep the cores from sleeping between requests")
    parser.add_argument("--url", help="measure this server instead of starting one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(serving("--model", options.model)).url
        if options.awake:
            stack.enter_context(awake())
        results = cases(Client(url), options.requests, stack)
    for name, row in results.items():
        figures = "  ".join(f"{key} {value:8.2f}" for key, value in row.items() if key != "stages")
        print(f"{name:<24} {figures}  ms")
        print(" " * 25 + "  ".join(f"{key} {value:.2f}" for key, value in row["stages"].items()))
    print(json.dumps(vars(options) | {"cases": results}))


def cases(client, count, stack):
    """Measure each endpoint, one after the other."""
    body = json.dumps(arguments()).encode()
    results = {"run, data URI": summary(*measure(lambda: client.run(body), count))}
    url = client.upload(PICTURE.read_bytes())
    stored = json.dumps(arguments(image_url=url, sync_mode=False)).encode()
    results["run, stored file"] = summary(*measure(lambda: client.run(stored), count))
    socket = stack.enter_context(connect(f"ws://{client.host}/run/{APP}/realtime", max_size=None, compression=None))
    packed = msgspec.msgpack.encode(arguments())

    def realtime():
        socket.send(packed)
        return msgspec.msgpack.decode(socket.recv())

    results["realtime, msgpack"] = summary(*measure(realtime, count))
    return results


if __name__ == "__main__":
    main()

"""One client, one request at a time: the wall clock, the engine's own time by stage, and what the server adds.

    python benchmarks/latency.py [--model instant:5 | demo | …] [--requests 200] [--url http://127.0.0.1:8000]

Talks over one keep-alive loopback socket, so that connecting is not counted. Overhead is the wall clock minus
`timings.inference`, which the engine measures itself. Prints a table; the last line is JSON.
"""

import argparse
import base64
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import msgspec
from websockets.sync.client import connect

from server.launch import running

PICTURE = Path(__file__).parent.parent / "server" / "static" / "beach.jpg"
PROMPT = "masterpiece, colorful, photo of a beach in hawaii, sun"
APP = "fal-ai/lcm-sd15-i2i"


class Client:
    """Calls over one connection that stays open."""

    def __init__(self, url):
        self.host = urllib.parse.urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.host)
        self.connection.connect()

    def call(self, method, path, body, content_type="application/json"):
        self.connection.request(method, path, body, {"Content-Type": content_type})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            sys.exit(f"{method} {path}: {answer.status} {data[:300]!r}")
        return data

    def run(self, body):
        return json.loads(self.call("POST", f"/run/{APP}", body))

    def upload(self, data):
        """A stored file's own URL for `data`."""
        body = json.dumps({"content_type": "image/jpeg", "file_name": "beach.jpg"})
        links = json.loads(self.call("POST", "/rest/storage/upload/initiate", body))
        self.call("PUT", links["upload_url"].split(self.host, 1)[1], data, "image/jpeg")
        return links["file_url"]


def measure(call, count, warm_up=5):
    """Walls and answers of `count` calls, after `warm_up` that don't count; seconds."""
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
    """p50/p95/p99 of wall and overhead, and the median of every stage; milliseconds."""
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
    parser.add_argument("--url", help="measure this server instead of starting one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = options.url
        if url is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            log = stack.enter_context((data_dir / "log").open("wb"))
            url = stack.enter_context(running(data_dir, "--model", options.model, log=log)).url
        results = cases(Client(url), options.requests, stack)
    for name, row in results.items():
        figures = "  ".join(f"{key} {value:8.2f}" for key, value in row.items() if key != "stages")
        print(f"{name:<24} {figures}  ms")
        print(" " * 25 + "  ".join(f"{key} {value:.2f}" for key, value in row["stages"].items()))
    print(json.dumps({"model": options.model, "requests": options.requests, "cases": results}))


def cases(client, count, stack):
    """Each way in, measured one after the other."""
    data = PICTURE.read_bytes()
    inline = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    arguments = {"prompt": PROMPT, "image_url": inline, "seed": 42, "sync_mode": True}
    body = json.dumps(arguments).encode()
    results = {"run, data URI": summary(*measure(lambda: client.run(body), count))}
    stored = json.dumps(arguments | {"image_url": client.upload(data), "sync_mode": False}).encode()
    results["run, stored file"] = summary(*measure(lambda: client.run(stored), count))
    socket = stack.enter_context(connect(f"ws://{client.host}/run/{APP}/realtime", max_size=None, compression=None))

    def realtime():
        socket.send(msgspec.msgpack.encode(arguments))
        return msgspec.msgpack.decode(socket.recv())

    results["realtime, msgpack"] = summary(*measure(realtime, count))
    return results


if __name__ == "__main__":
    main()

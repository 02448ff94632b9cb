"""Throughput and memory of the server around the engine, with an engine that takes no time.

    python -m benchmarks.api [--requests 10000] [--jobs 2000] [--clients 8]

- start: from the start of the process until `/health` answers, median of five;
- run: requests/s with a 512×512 JPEG decoded and encoded, and the growth of the API process over all of them;
- queue: jobs/s through submit, status until done, result; every accepted job is on disk.

The clients share the cores with the server. Prints a table; the last line is JSON.
"""

import argparse
import contextlib
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from tqdm import tqdm

from benchmarks.harness.http import APP, Client, arguments, serving
from benchmarks.harness.process import memory_mib

QUEUE = f"/queue/{APP}"
WARM_UP = 500


def start_s():
    """Return the seconds from the start of a server's process until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("fourstep")), "serve", "--model", "instant", "--port", str(port)]
    with tempfile.TemporaryDirectory() as data_dir:
        begun = time.perf_counter()
        with subprocess.Popen([*command, "--data-dir", data_dir], stderr=subprocess.DEVNULL) as process:
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(0.005)
            took = time.perf_counter() - begun
            process.send_signal(signal.SIGTERM)
    return took


def crowd(url, clients, count, task):
    """Run `task(client, number)` `count` times, by `clients` clients at once; return calls per second."""
    bar = tqdm(total=count, unit="call", leave=False)
    failed = []

    def user(first):
        try:
            with contextlib.closing(Client(url)) as client:
                for number in range(first, count, clients):
                    task(client, number)
                    bar.update()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=user, args=(first,)) for first in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    bar.close()
    if failed:
        sys.exit(f"{len(failed)} of {clients} clients failed: {failed[0]}")
    return count / took


def run_rate(options):
    """Return requests per second through /run, and the growth of the API process."""
    body = json.dumps(arguments()).encode()

    def task(client, _):
        client.call("POST", f"/run/{APP}", body)

    with serving("--model", "instant+jpeg") as server:
        crowd(server.url, options.clients, WARM_UP, task)
        before = memory_mib(server.pid)
        rate = crowd(server.url, options.clients, options.requests, task)
        return {"requests_s": rate, "memory_mib": before, "growth_mib": memory_mib(server.pid) - before}


def queue_rate(options):
    """Return jobs per second from submit to result."""

    def task(client, number):
        body = json.dumps({"prompt": "a beach", "image_url": picture, "seed": number}).encode()
        job = json.loads(client.call("POST", QUEUE, body))["request_id"]
        while json.loads(client.call("GET", f"{QUEUE}/requests/{job}/status"))["status"] != "COMPLETED":
            time.sleep(0.005)
        assert json.loads(client.call("GET", f"{QUEUE}/requests/{job}"))["seed"] == number

    with serving("--model", "instant") as server:
        with contextlib.closing(Client(server.url)) as client:
            picture = client.upload(b"\xff\xd8\xff\xe0 whatever: this engine looks at nothing")
        crowd(server.url, options.clients, WARM_UP, task)
        return {"jobs_s": crowd(server.url, options.clients, options.jobs, task)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    figures = {"start_s": statistics.median(start_s() for _ in range(5))} | run_rate(options) | queue_rate(options)
    for name, value in figures.items():
        print(f"{name:<12} {value:8.2f}")
    print(json.dumps(vars(options) | figures))


if __name__ == "__main__":
    main()

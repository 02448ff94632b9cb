"""Images per second and latency with N clients over HTTP, each sending its next request after the answer.

    python -m benchmarks.throughput [--clients 1 2 4 8] [--requests 24] [--model demo] [--url http://127.0.0.1:8000]

Starts a server of its own unless one is named. Every number of clients sends as many requests, in turns (1, 2, 4, 8,
then again), so that a busy machine slows all alike; figures are of all turns together, gains are medians of the turns'
ratios to one client. Prints a table; the last line is JSON.
"""

import argparse
import contextlib
import json
import statistics
import sys
import threading
import time

from benchmarks.harness.http import Client, arguments, serving


class User(threading.Thread):
    """Client that sends its requests one after the other over one connection."""

    def __init__(self, url, bodies):
        super().__init__()
        self.client = Client(url)
        self.bodies, self.latencies = bodies, []

    def run(self):
        with contextlib.closing(self.client):
            for body in self.bodies:
                begun = time.perf_counter()
                self.client.run(body)
                self.latencies.append(time.perf_counter() - begun)


def turn(url, bodies, clients):
    """Return total seconds, and each request's latency."""
    crowd = [User(url, bodies[number::clients]) for number in range(clients)]
    begun = time.perf_counter()
    for client in crowd:
        client.start()
    for client in crowd:
        client.join()
    wall, latencies = time.perf_counter() - begun, [one for client in crowd for one in client.latencies]
    if len(latencies) != len(bodies):
        sys.exit("a client has failed")
    return wall, latencies


def measure(url, options):
    bodies = [
        json.dumps(arguments(seed=seed, num_inference_steps=options.steps)).encode() for seed in range(options.requests)
    ]
    turn(url, bodies[: max(options.clients)], max(options.clients))  # warm
    walls = {clients: [] for clients in options.clients}
    latencies = {clients: [] for clients in options.clients}
    for _ in range(options.turns):
        for clients in options.clients:
            wall, each = turn(url, bodies, clients)
            walls[clients].append(wall)
            latencies[clients] += each
    first = options.clients[0]
    return {
        clients: {
            "images_s": round(options.requests * options.turns / sum(walls[clients]), 2),
            f"gain_over_{first}": round(
                statistics.median(a / b for a, b in zip(walls[first], walls[clients], strict=True)), 3
            ),
            "p50_ms": round(statistics.median(latencies[clients]) * 1e3, 1),
            "p95_ms": round(statistics.quantiles(latencies[clients], n=20)[18] * 1e3, 1),
        }
        for clients in options.clients
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=int, default=24, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--max-batch", default="8")
    parser.add_argument("--url", help="measure this server instead of starting one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        flags = ("--model", options.model, "--max-batch", options.max_batch, "--lora", "none")
        url = options.url or stack.enter_context(serving(*flags)).url
        found = measure(url, options)
    for clients, row in found.items():
        print(f"{clients:>3} clients  " + "  ".join(f"{key} {value:>8}" for key, value in row.items()))
    print(json.dumps({"model": options.model, "requests": options.requests, "turns": options.turns, "clients": found}))


if __name__ == "__main__":
    main()

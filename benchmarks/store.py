"""Durable jobs per second of the job store: submit, claim, complete, read the result. No HTTP, no engine.

    python -m benchmarks.store [--jobs 5000] [--input 300] [--output 1500] [--rounds 5]

Each client takes one job through all states and waits for every commit; workers claim what has been submitted. Sizes
are bytes of JSON: a stored picture's URL in, file URLs out. The disk's own speed is shown too, in flushes per second.
Prints a table; the last line is JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from server.jobs.job import LogLine, NewJob, Result
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore

APP = "fal-ai/lcm-sd15-i2i"
LOGS = tuple(LogLine(0.0, "INFO", text) for text in ("95 tokens, 77 used", "picture 512×512", "4 steps in 0.1 s"))


async def lifecycles(folder: Path, clients: int, jobs: int, input_bytes: int, output_bytes: int) -> float:
    """Return jobs per second with `clients` jobs at once."""
    store = SQLiteStore(Database(folder / f"{time.monotonic_ns()}.sqlite"))
    body = b"x" * input_bytes
    result = Result(200, b"x" * output_bytes)
    waiting: asyncio.Queue[None] = asyncio.Queue()
    done: dict[str, asyncio.Future[None]] = {}

    async def client(count: int) -> None:
        for _ in range(count):
            new = NewJob(app=APP, input=body)
            done[new.id] = asyncio.get_running_loop().create_future()
            await store.submit(new)
            waiting.put_nowait(None)
            await done[new.id]
            assert await store.result(new.id) == result

    async def complete(job) -> None:
        assert await store.finish(job, result, LOGS, 0.1)
        done.pop(job.id).set_result(None)

    async def worker() -> None:
        completing = set()
        while True:
            await waiting.get()
            count = 1
            while not waiting.empty():
                waiting.get_nowait()
                count += 1
            for job in await store.claim(count):
                task = asyncio.create_task(complete(job))
                completing.add(task)
                task.add_done_callback(completing.discard)

    working = asyncio.create_task(worker())
    began = time.perf_counter()
    await asyncio.gather(*(client(jobs // clients) for _ in range(clients)))
    took = time.perf_counter() - began
    working.cancel()
    await store.close()
    return jobs // clients * clients / took


def flushes(folder: Path) -> float:
    """Return how often per second the disk appends and flushes 4 KiB."""
    with (folder / "flushes").open("wb", buffering=0) as file:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.5:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            count += 1
    return count / 0.5


def main() -> None:
    """Measure, print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--input", type=int, default=300)
    parser.add_argument("--output", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the database goes (default: a temporary folder)")
    asked = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 16: [], 64: []}
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        disk = [flushes(folder)]
        for _ in range(asked.rounds):
            for clients, samples in rates.items():
                jobs = max(asked.jobs * min(clients, 8) // 8, clients)
                samples.append(asyncio.run(lifecycles(folder, clients, jobs, asked.input, asked.output)))
            disk.append(flushes(folder))
    print(f"{'clients':>8}  {'jobs/s':>8}  {'min':>8}  {'max':>8}")
    for clients, samples in rates.items():
        print(f"{clients:>8}  {statistics.median(samples):>8.0f}  {min(samples):>8.0f}  {max(samples):>8.0f}")
    print(f"disk: {statistics.median(disk):.0f} flushes/s")
    medians = {str(clients): round(statistics.median(samples), 1) for clients, samples in rates.items()}
    print(json.dumps({"benchmark": "store", "jobs_per_s": medians, "flushes_per_s": round(statistics.median(disk), 1)}))


if __name__ == "__main__":
    main()

"""Durable jobs per second of the job store: submit, claim, complete, read the result. No HTTP, no engine.

    python -m benchmarks.store [--jobs 5000] [--input 300] [--output 1500] [--rounds 5] [--database postgresql://…]

Each client takes one job through all states and waits for every commit; workers claim what has been submitted. Sizes
are bytes of JSON: a stored picture's URL in, file URLs out. The disk's own speed is shown too, in flushes per second.
With --database, an empty one, PostgreSQL takes turns with SQLite in the same run; the processor time of its processes
is known where they run on this machine. Prints a table; the last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from server.jobs.job import LogLine, NewJob, Result
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore

APP = "fal-ai/lcm-sd15-i2i"
LOGS = tuple(LogLine(0.0, "INFO", text) for text in ("95 tokens, 77 used", "picture 512×512", "4 steps in 0.1 s"))
CLIENTS = (1, 16, 64)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

Opened = Callable[[], AbstractAsyncContextManager[Any]]


def sqlite(folder: Path) -> Opened:
    """Return what opens a new file in the folder."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        store = SQLiteStore(Database(folder / f"{time.monotonic_ns()}.sqlite"))
        yield store
        await store.close()

    return opened


def postgres(url: str) -> Opened:
    """Return what opens the database, as one more server. Jobs of earlier runs stay in it."""
    from server.jobs.postgres.pool import Pool
    from server.jobs.postgres.store import PostgresStore

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        store = PostgresStore(Pool(url), None, node=uuid.uuid4().hex)  # no payload is too large for its row
        yield store
        await store.close()

    return opened


async def lifecycles(opened: Opened, clients: int, jobs: int, input_bytes: int, output_bytes: int) -> tuple[float, ...]:
    """Return jobs per second with `clients` jobs at once, and our own processor time for each in milliseconds."""
    body = b"x" * input_bytes
    result = Result(200, b"x" * output_bytes)
    waiting: asyncio.Queue[None] = asyncio.Queue()
    done: dict[str, asyncio.Future[None]] = {}

    async def client(store, count: int) -> None:
        for _ in range(count):
            new = NewJob(app=APP, input=body)
            done[new.id] = asyncio.get_running_loop().create_future()
            await store.submit(new)
            waiting.put_nowait(None)
            await done[new.id]
            assert await store.result(new.id) == result

    async def complete(store, job) -> None:
        assert await store.finish(job, result, LOGS, 0.1)
        done.pop(job.id).set_result(None)

    async def worker(store) -> None:
        completing = set()
        while True:
            await waiting.get()
            count = 1
            while not waiting.empty():
                waiting.get_nowait()
                count += 1
            claimed = 0
            while claimed < count:  # another's transaction may hide a job for a moment
                for job in (jobs := await store.claim(count - claimed)):
                    task = asyncio.create_task(complete(store, job))
                    completing.add(task)
                    task.add_done_callback(completing.discard)
                claimed += len(jobs)

    count = jobs // clients * clients
    async with opened() as store:
        await asyncio.gather(*(store.load("none") for _ in range(8)))  # connections are open
        working = asyncio.create_task(worker(store))
        began, spent = time.perf_counter(), time.process_time()
        await asyncio.gather(*(client(store, jobs // clients) for _ in range(clients)))
        took, spent = time.perf_counter() - began, time.process_time() - spent
        working.cancel()
    return count / took, spent / count * 1e3


async def claim_times(opened: Opened, count: int) -> list[float]:
    """Return the milliseconds from a submit's call to the claim's answer, on a server that has nothing else to do."""
    taken = []
    async with opened() as store:
        for _ in range(count):
            began = time.perf_counter()
            await store.submit(NewJob(app=APP, input=b"x" * 300))
            (job,) = await store.claim(1)
            taken.append((time.perf_counter() - began) * 1e3)
            await store.finish(job, Result(200, b"{}"), (), 0.1)
    return taken


def flushes(folder: Path) -> float:
    """Return how often per second the disk appends and flushes 4 KiB."""
    with (folder / "flushes").open("wb", buffering=0) as file:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.5:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            count += 1
    return count / 0.5


async def prepare(url: str) -> int | None:
    """Create the tables. Return the process id of PostgreSQL's first process, if it runs on this machine."""
    from server.jobs.postgres.connection import Statement
    from server.jobs.postgres.migrations import migrate
    from server.jobs.postgres.pool import Pool

    await migrate(url)
    pool = Pool(url)
    ((pid,),) = await pool.fetch(Statement("pid", "SELECT pg_backend_pid()"))
    postmaster = parent_of(pid)
    await pool.close()
    return postmaster


def parent_of(pid: int) -> int | None:
    """Return the parent of a process of PostgreSQL; None if there is no such process on this machine."""
    status = Path(f"/proc/{pid}/stat")
    if not status.exists() or "(postgres)" not in status.read_text():
        return None
    return int(status.read_text().rpartition(")")[2].split()[1])


def processor_s(postmaster: int) -> float:
    """Return the seconds that a process, its children, and those that have ended, have been on a processor.

    To the nanosecond, but for those that have ended: an idle server costs less than what ticks of 10 ms can show.
    """
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    ended = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()[13:15]
    total = sum(map(int, ended)) * TICK_S + ran_s(postmaster)
    for pid in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
            total += ran_s(pid)
    return total


def ran_s(pid: int | str) -> float:
    """Return the seconds that a process of one thread has been on a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    """Measure, print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--input", type=int, default=300)
    parser.add_argument("--output", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where SQLite's database goes (default: a temporary folder)")
    parser.add_argument("--database", default="", help="URL of an empty PostgreSQL database, to compare")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        measure(asked, Path(name))


def measure(asked: argparse.Namespace, folder: Path) -> None:
    """Take turns, round by round."""
    forms = {"sqlite": sqlite(folder)} | ({"postgres": postgres(asked.database)} if asked.database else {})
    postmaster = asyncio.run(prepare(asked.database)) if asked.database else None
    rates = {(form, clients): [] for form in forms for clients in CLIENTS}
    ours, theirs = ({(form, clients): [] for form, clients in rates} for _ in range(2))
    claims = {form: [] for form in forms}
    disk = [flushes(folder)]
    for _ in range(asked.rounds):
        for (form, clients), samples in rates.items():
            jobs = max(asked.jobs * min(clients, 8) // 8, clients)
            spent = processor_s(postmaster) if postmaster else 0.0
            rate, our_ms = asyncio.run(lifecycles(forms[form], clients, jobs, asked.input, asked.output))
            samples.append(rate)
            ours[form, clients].append(our_ms)
            if postmaster and form == "postgres":
                theirs[form, clients].append((processor_s(postmaster) - spent) / (jobs // clients * clients) * 1e3)
        for form, opened in forms.items():
            claims[form] += asyncio.run(claim_times(opened, max(1, min(200, asked.jobs))))
        disk.append(flushes(folder))
    print(f"{'':>8}  {'clients':>8}  {'jobs/s':>8}  {'min':>8}  {'max':>8}  {'our ms':>8}  {'its ms':>8}")
    for (form, clients), samples in rates.items():
        its = theirs[form, clients]
        figures = f"{statistics.median(samples):>8.0f}  {min(samples):>8.0f}  {max(samples):>8.0f}"
        spent_ms = f"{statistics.median(ours[form, clients]):>8.2f}  {statistics.median(its) if its else 0:>8.2f}"
        print(f"{form:>8}  {clients:>8}  {figures}  {spent_ms}")
    claimed = {form: round(statistics.median(samples), 3) for form, samples in claims.items()}
    for form, median in claimed.items():
        print(f"{form:>8}  submit to claimed, p50: {median:.2f} ms")
    print(f"disk: {statistics.median(disk):.0f} flushes/s")

    def medians(form: str, samples: dict[tuple[str, int], list[float]]) -> dict[str, float]:
        return {str(clients): round(statistics.median(samples[form, clients]), 3) for clients in CLIENTS}

    said = {
        "benchmark": "store",
        "jobs_per_s": medians("sqlite", rates),
        "flushes_per_s": round(statistics.median(disk), 1),
        "claimed_ms": claimed,
    }
    if asked.database:
        said |= {"postgres_jobs_per_s": medians("postgres", rates), "postgres_our_ms": medians("postgres", ours)}
    if postmaster:
        said["postgres_its_ms"] = medians("postgres", theirs)
    print(json.dumps(said))


if __name__ == "__main__":
    main()

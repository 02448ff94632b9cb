"""What several servers on one PostgreSQL cost it, and how soon one does or hears of what happened at another.

    python -m benchmarks.boxes [--jobs 100] [--deaths 3] [--seconds 15]

    elsewhere    jobs sent to a server without engine: until the other has begun one, and from its end until a poll of
                 the first one says so
    death        a server is killed while it runs a job: from then until the job begins at the other, beyond the lease
    idle         processor time of PostgreSQL with a server that has nothing to do, without its cost with none
    watched      the same with a server whose engine is busy, 200 of its jobs watched in a queue of 10 000

Starts and ends are noted by a trigger in the transaction that makes them, all by the one clock of this machine. Starts
its own PostgreSQL, in memory. Prints a table; the last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.store import processor_s
from server.access.auth import ANONYMOUS
from server.cli.launcher import running
from server.jobs.job import NewJob
from server.jobs.postgres.migrations import migrate
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.store import PostgresStore
from tests.support.postgres import cluster
from tests.support.server_process import APP, clean_env, post

QUEUE = f"/queue/{APP}"
LEASE_S = 2.0
QUEUED, WATCHED = 10_000, 200
POLL_S = 0.002
GATES = {
    "started_p95_ms": 100,
    "seen_p95_ms": 200,
    "death_ms": 2000,
    "idle_ms_per_s": 5,
    "watched_ms_per_s": 40,
}
_NOTED = (
    "CREATE TABLE noted (job text, status text, at float8, waited float8)",
    """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
       INSERT INTO noted SELECT NEW.id, NEW.status, now, now - NEW.submitted_at
       FROM extract(epoch FROM clock_timestamp()) AS now;
       RETURN NULL; END $$""",
    """CREATE TRIGGER noted AFTER UPDATE OF status ON jobs
       FOR EACH ROW WHEN (NEW.status <> OLD.status) EXECUTE FUNCTION note()""",
)


@contextlib.contextmanager
def database():
    """Yield a PostgreSQL of its own with the tables, in which starts and ends are noted."""
    with cluster() as postgres:
        asyncio.run(migrate(postgres.url()))
        asyncio.run(postgres.execute(*_NOTED))
        yield postgres


@contextlib.contextmanager
def box(folder, number, postgres, *flags):
    """Yield a running server of that database."""
    where = folder / f"box{number}"
    where.mkdir(exist_ok=True)
    (folder / "shared").mkdir(exist_ok=True)
    env = clean_env({"FOURSTEP_DATABASE": postgres.url(), "FOURSTEP_FILES": f"file://{folder / 'shared'}"})
    flags = ("--node", where.name, *flags)
    with (where / "log").open("ab") as log, running(where, *flags, env=env, log=log) as server:
        yield server
        server.kill()


def submitted(server):
    """Submit a job; return its id."""
    return post(server, QUEUE)["request_id"]


def ended(server, job):
    """Return once a server says that a job has ended."""
    while server.get(f"{QUEUE}/requests/{job}/status")["status"] != "COMPLETED":
        time.sleep(POLL_S)


def noted(postgres, status, job=None):
    """Return when jobs became `status`, and how long they had waited: (id, Unix time, seconds)."""
    rows = asyncio.run(postgres.fetch(postgres.url(), f"SELECT job, at, waited FROM noted WHERE status = '{status}'"))
    return [row for row in rows if job is None or row[0] == job]


def p95(samples):
    """Return the 95th percentile."""
    return statistics.quantiles(samples, n=20)[-1]


def elsewhere(postgres, folder, jobs):
    """Send jobs to a server without engine, one after the other, and poll for the end there."""
    seen = {}
    with box(folder, 1, postgres, "--model", "instant"), box(folder, 2, postgres, "--device", "none") as other:
        for _ in range(jobs):
            job = submitted(other)
            ended(other, job)
            seen[job] = time.time()
            time.sleep(random.uniform(0, 0.1))  # at any time between two looks
    started = [waited * 1e3 for _, _, waited in noted(postgres, "IN_PROGRESS")]
    late = [(seen[job] - at) * 1e3 for job, at, _ in noted(postgres, "COMPLETED")]
    return {
        "started_p50_ms": statistics.median(started),
        "started_p95_ms": p95(started),
        "seen_p50_ms": statistics.median(late),
        "seen_p95_ms": p95(late),
    }


def working(servers):
    """Wait until one of the servers runs a job; return it."""
    while True:
        for server in servers:
            if server.get("/health")["queue"]["running"]:
                return server


def death(postgres, folder, deaths):
    """Kill the server that runs a job, again and again."""
    beyond = []
    for _ in range(deaths):
        with contextlib.ExitStack() as stack:
            flags = ("--lease", f"{LEASE_S:g}", "--model", "instant:1500")
            servers = [stack.enter_context(box(folder, number, postgres, *flags)) for number in (1, 2)]
            job = submitted(servers[0])
            first = working(servers)
            first.kill()
            killed = time.time()
            ended(next(server for server in servers if server is not first), job)
        begun = max(at for _, at, _ in noted(postgres, "IN_PROGRESS", job))
        beyond.append((begun - killed - LEASE_S) * 1e3)
    return {"death_ms": max(beyond), "death_p50_ms": statistics.median(beyond)}


def spent(postgres, seconds):
    """Return the milliseconds of processor time that PostgreSQL spends in a second."""
    before = processor_s(postgres.pid)
    time.sleep(seconds)
    return (processor_s(postgres.pid) - before) / seconds * 1e3


def idle(postgres, folder, seconds):
    """Cost of one server with nothing to do."""
    without = spent(postgres, seconds)
    with box(folder, 1, postgres, "--model", "instant"):
        time.sleep(3)
        return {"idle_ms_per_s": spent(postgres, seconds) - without, "no_server_ms_per_s": without}


async def queue_up(url):
    """Fill the queue; return the ids in its order."""
    pool = Pool(url)
    store = PostgresStore(pool, None, node=uuid.uuid4().hex)
    ids = []
    for _ in range(QUEUED // 50):
        ids += [
            made.id
            for made in await asyncio.gather(
                *(store.submit(NewJob(app=APP, input=b"{}", owner=ANONYMOUS.id)) for _ in range(50))
            )
        ]
    await pool.close()
    return ids


def watched(postgres, folder, seconds):
    """Cost of one server that keeps up with the jobs that its clients ask for."""
    ids = random.Random(0).sample(asyncio.run(queue_up(postgres.url())), WATCHED)
    # They stay where they are, behind real ones that keep the engine busy.
    asyncio.run(postgres.execute(f"UPDATE jobs SET not_before = {time.time() + 86400}, priority = 3", "VACUUM jobs"))
    with (
        box(folder, 1, postgres, "--model", "instant:5000", "--max-batch", "1", "--max-queue", "20000") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        for _ in range(12):
            submitted(server)

        def ask():
            return list(pool.map(lambda each: server.get(f"{QUEUE}/requests/{each}/status")["status"], ids))

        ask()
        before, began = processor_s(postgres.pid), time.monotonic()
        while time.monotonic() < began + seconds:
            ask()
            time.sleep(2)
        return {"watched_ms_per_s": (processor_s(postgres.pid) - before) / (time.monotonic() - began) * 1e3}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    asked = parser.parse_args()
    figures = {}
    for case, count in (
        (elsewhere, asked.jobs),
        (death, asked.deaths),
        (idle, asked.seconds),
        (watched, asked.seconds),
    ):
        with tempfile.TemporaryDirectory() as folder, database() as postgres:
            found = {name: round(value, 1) for name, value in case(postgres, Path(folder), count).items()}
        for name, value in found.items():
            print(f"{case.__name__:<10}{name:<20}{value:>10}" + (f"   gate {GATES[name]}" if name in GATES else ""))
        figures |= found
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

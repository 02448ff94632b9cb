"""R1's control: workers that are frozen for longer than their lease and come back, with the fence and without.

A server is the only one on its database, so that over HTTP the fence is hardly ever needed. Here several worker
processes share one database; they are stopped (SIGSTOP) for longer than their lease or killed, and publish when they
continue. A trigger in the database counts the publications.
"""

import asyncio
import multiprocessing
import os
import random
import signal
import time
import uuid

import sqlalchemy as sa
from typing_extensions import override

from server.jobs import schema
from server.jobs.job import NewJob, Result, Status
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore
from tests.chaos.harness import Failed, add_witness, history

LEASE_S = 0.2
RUN_S = 0.05
WORKERS = 3
FORKS = multiprocessing.get_context("forkserver")


class Unfenced(SQLiteStore):
    """The control: publishes whoever has the job now, and also when it has ended."""

    @override
    def _end(self, connection, end):
        jobs = schema.jobs
        query = sa.select(jobs.c.fence, jobs.c.status).where(jobs.c.seq == end.seq)
        fence, status = connection.execute(query).one()
        return super()._end(connection, end._replace(fence=fence, seen=Status(status)))


def frozen_workers(folder, jobs, *, fenced, seed=0):
    """Return how many of `jobs` were published more than once, never published, and claimed again."""
    database = folder / "jobs.sqlite"
    add_witness(database)
    asyncio.run(_submit(database, jobs))
    chance = random.Random(seed)
    workers = [_worker(database, fenced) for _ in range(WORKERS)]
    freezes, end = 0, time.monotonic() + 60 + jobs / 5
    try:
        while not all(job.status == "COMPLETED" for job in history(database)):
            if time.monotonic() > end:
                raise Failed("the workers get nowhere")
            number = chance.randrange(WORKERS)
            if chance.random() < 0.2:
                _end(workers[number])
                workers[number] = _worker(database, fenced)
            else:
                os.kill(workers[number].pid, signal.SIGSTOP)
                time.sleep(LEASE_S * chance.uniform(1.5, 3))
                os.kill(workers[number].pid, signal.SIGCONT)
                freezes += 1
            time.sleep(chance.uniform(0, 3 * RUN_S))
        time.sleep(4 * RUN_S)  # whoever has just come back may still publish
    finally:
        for worker in workers:
            _end(worker)
    ends = history(database)
    return {
        "jobs": len(ends),
        "freezes": freezes,
        "claimed_again": sum(job.claims > 1 for job in ends),
        "published_twice": sum(job.published > 1 for job in ends),
        "never_published": sum(job.published == 0 for job in ends),
    }


async def _submit(database, jobs):
    store = SQLiteStore(Database(database))
    await asyncio.gather(*(store.submit(NewJob(app="fal-ai/x", input=b"{}")) for _ in range(jobs)))
    await store.database.close()


def _worker(database, fenced):
    process = FORKS.Process(target=_work, args=(database, fenced))
    process.start()
    return process


def _end(worker):
    worker.kill()
    worker.join()


def _work(database, fenced):
    asyncio.run(_claim_and_publish((SQLiteStore if fenced else Unfenced)(Database(database), lease_s=LEASE_S)))


async def _claim_and_publish(store):
    while True:
        await store.heartbeat(())
        jobs = await store.claim(2)
        await asyncio.sleep(RUN_S)
        for job in jobs:
            await store.finish(job, Result(200, uuid.uuid4().bytes), (), RUN_S)

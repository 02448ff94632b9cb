"""Another program, such as a backup, holds SQLite's write lock: what waits, what is refused, and nothing is lost."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from server.fal.errors import RequestError
from server.jobs.errors import DatabaseError
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.group_commit import GroupCommit
from server.jobs.sqlite.store import SQLiteStore
from server.jobs.times import QueueTimes
from server.settings import Settings
from tests.jobs.queues import queue_on
from tests.jobs.test_queue import Clock, Engines, ended, eventually, new
from tests.support.server_process import APP, post, serving, start_server, submitted, until

BACKUP = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(path):
    """Hold the write lock in a second process."""
    command = [sys.executable, "-c", BACKUP, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as backup:
        assert backup.stdout.readline() == b"locked\n"
        yield


@contextlib.asynccontextmanager
async def impatient(folder, engines, clock=None):
    """A queue that waits for no lock."""
    store = SQLiteStore(Database(folder / "jobs.sqlite", lock_wait_s=0.0, lock_try_s=0.05), clock)
    times = QueueTimes(disk_retry=0.05, heartbeat=0.05)
    arguments = {"capacity": lambda: 2, "settings": Settings(data_dir=folder), "key_share": 0.5}
    queue = queue_on(store, engines.run, **arguments, times=times)
    await queue.start()
    try:
        yield queue
    finally:
        await queue.close(0.0)
        await store.close()


@pytest.mark.anyio
async def test_a_transaction_that_can_not_be_opened_is_tried_once_for_all_its_operations():
    tries, going = [], threading.Event()

    @contextlib.contextmanager
    def transaction():
        going.wait(10)
        tries.append(1)
        raise sqlite3.OperationalError("database is locked")
        yield

    writer = GroupCommit(transaction, "test")
    first = writer.submit(print)
    rest = [writer.submit(print) for _ in range(20)]
    going.set()
    failures = await asyncio.gather(first, *rest, return_exceptions=True)
    await asyncio.to_thread(writer.close)

    assert {str(failure) for failure in failures} == {"database is locked"}
    assert len(tries) <= 2


@pytest.mark.anyio
async def test_a_short_lock_is_waited_for(tmp_path):
    database = Database(tmp_path / "jobs.sqlite", lock_wait_s=60.0, lock_try_s=0.01)
    with locked(tmp_path / "jobs.sqlite"):
        written = database.write(lambda connection: connection.exec_driver_sql("SELECT 7").scalar())
        await asyncio.wait({written}, timeout=0.1)
        waited = not written.done()

    assert (waited, await written) == (True, 7)
    await database.close()


@pytest.mark.anyio
async def test_a_long_lock_is_waited_for_once_until_it_was_free(tmp_path):
    database = Database(tmp_path / "jobs.sqlite", lock_wait_s=0.5, lock_try_s=0.01)
    with locked(tmp_path / "jobs.sqlite"):
        first, second = [await tries(database) for _ in range(2)]
    free = await tries(database)
    with locked(tmp_path / "jobs.sqlite"):
        again = await tries(database)
    await database.close()

    assert (first > 1, second, free, again > 1) == (True, 1, 1, True)


async def tries(database):
    """Return how often a write tried to get the lock."""
    seen = []
    listener = (database._engine, "before_cursor_execute", lambda *event: seen.append(event[2]))
    sa.event.listen(*listener)
    await asyncio.gather(database.write(lambda _: None), return_exceptions=True)
    sa.event.remove(*listener)
    return seen.count("BEGIN IMMEDIATE")


@pytest.mark.anyio
async def test_closing_waits_for_no_lock(tmp_path):
    database = Database(tmp_path / "jobs.sqlite", lock_wait_s=3600.0, lock_try_s=0.01)
    with locked(tmp_path / "jobs.sqlite"):
        written = [database.write(lambda connection: None) for _ in range(300)]
        await database.close()

    failures = await asyncio.gather(*written, return_exceptions=True)
    assert all(isinstance(failure, DatabaseError) for failure in failures)


@pytest.mark.anyio
async def test_while_it_is_locked_submits_are_429_and_everything_else_goes_on(tmp_path):
    engines = Engines()
    async with impatient(tmp_path, engines) as queue:
        running = await queue.submit(new(seed=1))
        await engines.until(lambda: engines.running == 1)
        with locked(tmp_path / "jobs.sqlite"):
            refusals = await asyncio.gather(*(queue.submit(new()) for _ in range(50)), return_exceptions=True)
            status = await queue.get(running.id)
            unknown = await queue.get("nothing")
            engines.go.set()
            await eventually(lambda: engines.running == 0)
        snapshot = await ended(queue, running.id)
        later = await ended(queue, (await queue.submit(new(seed=2))).id)

    assert {(type(refusal), refusal.status) for refusal in refusals} == {(RequestError, 429)}
    assert (status.status, unknown) == ("IN_PROGRESS", None)
    assert (snapshot.result_status, later.result_status) == (200, 200)
    assert engines.begun == [1, 2]


@pytest.mark.anyio
async def test_a_lease_that_ran_out_while_it_was_locked_is_renewed_and_its_job_goes_on(tmp_path):
    engines, clock = Engines(), Clock()
    async with impatient(tmp_path, engines, clock) as queue:
        job = await queue.submit(new(seed=1))
        await engines.until(lambda: engines.running == 1)
        with locked(tmp_path / "jobs.sqlite"):
            clock.now += 3600.0
            with pytest.raises(RequestError):
                await queue.submit(new())
        engines.go.set()
        snapshot = await ended(queue, job.id)

    assert (snapshot.result_status, engines.begun, engines.cancelled) == (200, [1], [])


def test_a_server_stops_in_time_although_another_program_has_the_lock_and_loses_nothing(tmp_path):
    flags = ("--model", "instant:300", "--max-batch", "1", "--drain-timeout", "2")
    server = start_server(*flags, data_dir=tmp_path)
    server.wait_ready()
    accepted = [f"/queue/{APP}/requests/{post(server, f'/queue/{APP}')['request_id']}" for _ in range(5)]
    accepted.append(submitted(server))
    with locked(tmp_path / "jobs.sqlite"):
        assert server.stop(timeout=20) == 0

    with serving("--model", "instant:1", data_dir=tmp_path) as again:
        for path in accepted:
            until(lambda path=path: again.get(f"{path}/status")["status"] == "COMPLETED")
            assert again.get(path)["seed"] == 7
    assert "Traceback" not in (tmp_path / "log").read_text()

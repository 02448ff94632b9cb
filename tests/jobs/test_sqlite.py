"""What is SQLite's own: its statements, its file, how it deletes."""

import contextlib
import sqlite3
import threading

import pytest
import sqlalchemy as sa

from server.jobs import schema
from server.jobs.errors import DatabaseError, DatabaseTooNew
from server.jobs.job import LogLine, Result, Status
from server.jobs.retention import FRESH_S
from server.jobs.sqlite import statements
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.statements import STEPS
from server.jobs.store import GRACE_S
from tests.chaos.fencing import Unfenced
from tests.jobs.forms import SQLiteForm
from tests.jobs.test_retention import Expiring
from tests.jobs.test_store import DONE, claimed, finished, submitted, two_workers_publish

pytestmark = pytest.mark.anyio


@pytest.fixture
async def form(tmp_path):
    form = SQLiteForm(tmp_path)
    yield form
    await form.close()


@pytest.fixture
def store(form):
    return form.store


async def test_a_claim_walks_the_index_of_waiting_jobs(store):
    seen = []
    listener = (store.database._engine, "before_cursor_execute", lambda *event: seen.append(event[2:4]))
    sa.event.listen(*listener)
    await store.claim(1)
    sa.event.remove(*listener)

    (statement, values) = next(event for event in seen if event[0].startswith("UPDATE"))
    plan = await store.database.read(
        lambda connection: [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    )
    assert "SCAN jobs USING INDEX jobs_waiting" in plan


async def test_each_connection_commits_to_disk_in_wal_mode(store):
    def pragmas(connection):
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

    assert await store.database.write(pragmas) == ["wal", 2]
    assert await store.database.read(pragmas) == ["wal", 2]


async def test_schema_steps_run_once_each_and_in_order(tmp_path):
    def step(name):
        return lambda connection: connection.exec_driver_sql(f"CREATE TABLE {name} (x)") and None

    path = tmp_path / "steps.sqlite"
    await Database(path, [step("one")]).close()
    await Database(path, [step("one"), step("two"), step("three")]).close()

    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")] == ["one", "two", "three"]
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


async def test_a_database_of_a_newer_release_is_refused(tmp_path):
    path = tmp_path / "newer.sqlite"
    await Database(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")

    with pytest.raises(DatabaseTooNew):
        Database(path)


async def test_without_the_fence_there_are_two_results(form):
    form.store = form.worker(Unfenced)

    assert await two_workers_publish(form, Unfenced) == [True, True]
    assert len(await form.outbox.due(10)) == 2


async def test_job_log_and_webhook_change_together_or_not_at_all(form, store):
    request_id = await submitted(store, webhook="http://receiver/hook")
    job = await claimed(store)

    with pytest.raises(DatabaseError):
        await store.finish(job, DONE, [LogLine(1.0, "INFO", None)], 0.1)
    assert (await store.load(request_id)).status is Status.IN_PROGRESS
    assert await form.outbox.due(10) == []


async def test_an_input_is_dropped_once_it_is_answered(store):
    await finished(store)

    def inputs(connection):
        return connection.execute(sa.select(schema.payloads.c.input)).scalars().all()

    assert await store.database.read(inputs) == [None]


async def test_a_claim_that_has_waited_for_long_is_not_taken_for_one_that_went_unheard(form, store):
    request_id, going = await submitted(store), threading.Event()
    store.database.write(lambda _: going.wait(10))
    claim = store.claim(1)
    await form.forward(GRACE_S + 1)
    beat = store.heartbeat(())
    going.set()

    assert ([job.id for job in await claim], (await beat).requeued) == ([request_id], [])


@pytest.mark.parametrize(("input_size", "output_size"), [(40_000, 9_000), (9_000, 40_000), (50, 50)])
async def test_nothing_of_a_private_job_is_left_on_disk(form, store, input_size, output_size):
    output = Result(200, b"canary-" * (output_size // 7))
    given = {"input": b"canary-" * (input_size // 7), "call": {"wish": "canary-"}}
    request_id = await finished(store, result=output, store_io=False, **given)
    expiring = Expiring(store)
    await expiring.retention.forget(request_id)
    await expiring.retention.keep_quota()

    left = b"".join(file.read_bytes() for file in form.path.parent.iterdir())
    assert b"canary-" not in left
    assert expiring.forgotten == [request_id]
    assert (await store.load(request_id)).expired


@pytest.mark.parametrize("webhook", [None, "http://receiver/hook"])
async def test_nothing_of_a_deleted_job_is_left_on_disk(form, store, webhook):
    request_id = await finished(store, result=Result(200, b"canary-" * 5000), webhook=webhook)
    expiring = Expiring(store)
    await expiring.retention.delete(request_id)
    await expiring.retention.keep_quota()

    left = b"".join(file.read_bytes() for file in form.path.parent.iterdir())
    assert b"canary-" not in left
    assert expiring.forgotten == [request_id]
    assert await store.result(request_id) is None


async def test_over_the_quota_old_payloads_give_their_disk_back(form, store):
    await finished(store, result=Result(200, b"x" * 4_000_000))
    await form.forward(FRESH_S)
    full = await store.used_bytes()
    await Expiring(store, jobs_quota_bytes=1_000_000).retention.keep_quota()
    await store.database.empty_log()

    assert await store.used_bytes() < full - 4_000_000
    assert form.path.stat().st_size < full - 4_000_000


async def test_the_oldest_results_are_sorted_by_their_end_then_by_acceptance():
    assert "ORDER BY jobs.finished_at, jobs.seq" in str(statements.OLD_RESULTS_OF)

"""Durable jobs: who gets which, who may publish, what survives, what is let go."""

import contextlib
import sqlite3

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from pipelines.messages import Priority
from server.fal.errors import RequestError
from server.jobs import schema
from server.jobs.database import Database, DatabaseTooNew
from server.jobs.job import LogLine, NewJob, Outcome, Result, Status
from server.jobs.store import JobStore
from server.webhooks.outbox import Busy, Outbox
from tests.chaos.fencing import Unfenced

STATEMENTS = {name: value for name, value in vars(schema).items() if isinstance(value, sa.sql.ClauseElement)}
DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}
LEASE = 60.0
LINE = LogLine(1.0, "INFO", "4 steps")
DONE = Result.success({"seed": 42})
OTHER = Result.success({"seed": 43})


def new(**wishes) -> NewJob:
    return NewJob(**{"app": "fal-ai/lcm-sd15-i2i", "input": b'{"seed":42}', **wishes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.sqlite"


@pytest.fixture
async def store(path):
    async with contextlib.aclosing(Closing(JobStore(Database(path)))) as closing:
        yield closing.store


class Closing:
    """`close` by the name that `aclosing` knows."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.aclose = store.database.close


async def submitted(store: JobStore, **wishes) -> str:
    return (await store.submit(new(**wishes), now=0.0)).id


async def claimed(store: JobStore, worker: str = "a", now: float = 0.0):
    (job,) = await store.claim(worker, 1, LEASE, now)
    return job


async def finished(store: JobStore, now: float = 10.0, result: Result = DONE, **wishes) -> str:
    request_id = await submitted(store, **wishes)
    assert await store.finish(await claimed(store), result, [LINE], 0.1, now)
    return request_id


# --- SQL


def compiled(element: sa.sql.ClauseElement, dialect: str) -> str:
    if isinstance(element, sa.Table):
        element = sa.schema.CreateTable(element)
        return str(element.compile(dialect=DIALECTS[dialect]))
    return str(DIALECTS[dialect].statement_compiler(DIALECTS[dialect], element))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_and_table_compiles_for_bothdatabases(name, dialect):
    assert compiled(STATEMENTS[name], dialect)


def test_postgresql_claims_without_waiting_for_other_claimers():
    text = compiled(schema.CLAIM, "postgresql")

    assert "FOR UPDATE SKIP LOCKED" in text
    assert "RETURNING" in text


@pytest.mark.anyio
async def test_a_claim_walks_the_index_of_waiting_jobs(store):
    seen = []
    listener = (store.database._engine, "before_cursor_execute", lambda *event: seen.append(event[2:4]))
    sa.event.listen(*listener)
    await store.claim("a", 1, LEASE, 0.0)
    sa.event.remove(*listener)

    (statement, values) = next(event for event in seen if event[0].startswith("UPDATE"))
    plan = await store.database.read(
        lambda connection: [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    )
    assert "SCAN jobs USING INDEX jobs_waiting" in plan


# --- the file


@pytest.mark.anyio
async def test_each_connection_commits_to_disk_in_wal_mode(path, store):
    def pragmas(connection):
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

    assert await store.database.write(pragmas) == ["wal", 2]
    assert await store.database.read(pragmas) == ["wal", 2]


@pytest.mark.anyio
async def test_schema_steps_run_once_each_and_in_order(path):
    def step(name):
        return lambda connection: connection.exec_driver_sql(f"CREATE TABLE {name} (x)") and None

    await Database(path, [step("one")]).close()
    await Database(path, [step("one"), step("two"), step("three")]).close()

    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")] == ["one", "two", "three"]
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


@pytest.mark.anyio
async def test_adatabase_of_a_newer_release_is_refused(path):
    await Database(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(schema.STEPS) + 1}")

    with pytest.raises(DatabaseTooNew):
        Database(path)


# --- claiming


@pytest.mark.anyio
async def test_jobs_are_claimed_by_priority_then_in_the_order_of_acceptance(store):
    ids = [await submitted(store, priority=priority) for priority in (Priority.LOW, Priority.NORMAL) * 2]

    jobs = await store.claim("a", 3, LEASE, 0.0)

    assert [job.id for job in jobs] == [ids[1], ids[3], ids[0]]


@pytest.mark.anyio
async def test_some_owners_come_after_all_others(store):
    for owner in ("many", "many", "few", "many"):
        await store.submit(new(owner=owner), 0.0)

    first = await store.claim("a", 2, LEASE, 0.0, after_others=["many"])
    rest = await store.claim("a", 9, LEASE, 0.0, after_others=["many"])

    assert [job.owner for job in first] == ["many", "few"]
    assert [job.owner for job in rest] == ["many", "many"]


@pytest.mark.anyio
async def test_a_claimed_job_is_what_was_submitted(store):
    wish = new(owner="key-1", call={"cdn": "http://h/cdn"}, start_timeout=5.0, no_retry=True)
    await store.submit(wish, now=100.0)

    job = await claimed(store, now=101.0)

    assert (job.id, job.app, job.owner, job.input, job.call) == (wish.id, wish.app, wish.owner, wish.input, wish.call)
    assert (job.attempt, job.start_by, job.no_retry) == (1, 105.0, True)


@pytest.mark.anyio
async def test_a_claimed_job_is_not_claimed_by_another_worker(store):
    await submitted(store)
    await claimed(store, "a")

    assert await store.claim("b", 1, LEASE, 0.0) == []


@pytest.mark.anyio
async def test_a_released_job_gets_its_old_place_but_not_before_its_time(store):
    first, second = [await submitted(store) for _ in range(2)]
    await store.release(await claimed(store), refund=False, after=5.0)

    early = await store.claim("a", 2, LEASE, 4.0)
    late = await store.claim("a", 2, LEASE, 6.0)

    assert [job.id for job in early] == [second]
    assert [(job.id, job.attempt) for job in late] == [(first, 2)]


@pytest.mark.anyio
async def test_a_refunded_try_does_not_count(store):
    await submitted(store)
    await store.release(await claimed(store), refund=True, after=0.0)

    assert (await claimed(store)).attempt == 1


# --- leases and fences


@pytest.mark.anyio
async def test_a_lease_that_is_not_renewed_lapses(store):
    kept, lost = [await submitted(store) for _ in range(2)]
    await claimed(store, "alive")
    await claimed(store, "dead")
    await store.heartbeat("alive", LEASE, now=50.0)

    assert await store.heartbeat("alive", LEASE, now=61.0) == ({kept: 1}, [lost])
    assert await store.heartbeat("alive", LEASE, now=61.0) == ({kept: 1}, [])


@pytest.mark.anyio
async def test_a_worker_that_was_frozen_past_its_lease_keeps_its_jobs(store):
    kept = await submitted(store)
    await claimed(store, "frozen")

    assert await store.heartbeat("frozen", LEASE, now=LEASE + 1) == ({kept: 1}, [])


async def two_workers_publish(store: JobStore) -> list[bool]:
    """A worker freezes past its lease, another takes the job and publishes; the first wakes up and publishes too."""
    await submitted(store, webhook="http://receiver/hook")
    frozen = await claimed(store, "frozen")
    await store.heartbeat("another", LEASE, now=LEASE + 1)
    successor = await claimed(store, "successor", now=LEASE + 1)
    published = [await store.finish(successor, DONE, [], 0.1, 70.0)]
    return [*published, await store.finish(frozen, OTHER, [], 0.1, 71.0)]


@pytest.mark.anyio
async def test_a_worker_back_from_the_dead_cannot_publish(store):
    assert await two_workers_publish(store) == [True, False]
    assert len(await Outbox(store.database).due(100.0, 10)) == 1


@pytest.mark.anyio
async def test_without_the_fence_there_are_two_results(path):
    async with contextlib.aclosing(Closing(Unfenced(Database(path)))) as unfenced:
        assert await two_workers_publish(unfenced.store) == [True, True]
        assert len(await Outbox(unfenced.store.database).due(100.0, 10)) == 2


@pytest.mark.anyio
async def test_a_worker_that_lost_its_job_cannot_publish_while_another_runs_it(store):
    request_id = await submitted(store)
    frozen = await claimed(store, "frozen")
    await store.heartbeat("another", LEASE, now=LEASE + 1)
    await claimed(store, "successor", now=LEASE + 1)

    assert not await store.finish(frozen, OTHER, [], 0.1, 70.0)
    assert await store.result(request_id) is None


# --- the end


@pytest.mark.anyio
async def test_a_result_is_kept_as_it_was_given(store):
    failure = Result.failure(RequestError("runner_server_error", "the engine failed"))

    request_id = await finished(store, result=failure)

    assert await store.result(request_id) == failure


@pytest.mark.anyio
async def test_a_finished_job_is_read_back_with_its_log(store):
    request_id = await finished(store)

    snapshot = await store.load(request_id)

    assert (snapshot.status, snapshot.logs, snapshot.inference_time) == (Status.COMPLETED, (LINE,), 0.1)


@pytest.mark.anyio
async def test_job_log_and_webhook_change_together_or_not_at_all(store):
    request_id = await submitted(store, webhook="http://receiver/hook")
    job = await claimed(store)

    with pytest.raises(sa.exc.IntegrityError):
        await store.finish(job, DONE, [LogLine(1.0, "INFO", None)], 0.1, 1.0)
    assert (await store.load(request_id)).status is Status.IN_PROGRESS
    assert await Outbox(store.database).due(100.0, 10) == []


@pytest.mark.anyio
async def test_an_input_is_dropped_once_it_is_answered(path, store):
    await finished(store)

    def inputs(connection):
        return connection.execute(sa.select(schema.payloads.c.input)).scalars().all()

    assert await store.database.read(inputs) == [None]


@pytest.mark.anyio
async def test_a_job_may_be_born_with_its_result(store):
    snapshot = await store.submit(new(result=DONE, webhook="http://receiver/hook"), now=1.0)

    assert snapshot.status is Status.COMPLETED
    assert await store.result(snapshot.id) == DONE
    assert [webhook.request_id for webhook in await Outbox(store.database).due(1.0, 10)] == [snapshot.id]


@pytest.mark.anyio
async def test_a_waiting_job_can_be_ended_but_a_running_one_cannot(store):
    running, waiting = [await submitted(store) for _ in range(2)]
    await claimed(store)

    assert await store.finish_waiting(waiting, OTHER, 1.0)
    assert not await store.finish_waiting(running, OTHER, 1.0)
    assert not await store.finish_waiting("unknown", OTHER, 1.0)


@pytest.mark.anyio
async def test_a_cancel_has_four_outcomes(store):
    running, waiting = [await submitted(store) for _ in range(2)]
    job = await claimed(store)

    outcomes = [await store.cancel(which, [LINE], 1.0) for which in (running, waiting, running, "unknown")]

    assert outcomes == [Outcome.REQUESTED, Outcome.REMOVED, Outcome.ALREADY_COMPLETED, Outcome.NOT_FOUND]
    assert [(await store.result(which)).status for which in (running, waiting)] == [499, 499]
    assert not await store.finish(job, DONE, [], 0.1, 2.0)


# --- after the end of a server


@pytest.mark.anyio
async def test_a_new_server_knows_every_job_and_runs_only_what_had_not_finished(path, store):
    done = await finished(store)
    low = await submitted(store, priority=Priority.LOW)
    running, waiting = [await submitted(store) for _ in range(2)]
    await claimed(store)
    await store.database.close()

    async with contextlib.aclosing(Closing(JobStore(Database(path)))) as closing:
        unfinished = await closing.store.recover()
        jobs = await closing.store.claim("next", 10, LEASE, 0.0)

        assert [snapshot.id for snapshot in unfinished] == [running, waiting, low]
        assert [(job.id, job.attempt) for job in jobs] == [(running, 2), (waiting, 1), (low, 1)]
        assert await closing.store.result(done) == DONE


# --- the log


WARNING = LogLine(0.0, "WARN", "the webhook is not sent")


async def logged(store: JobStore, request_id: str):
    return (await store.load(request_id)).logs


@pytest.mark.anyio
async def test_the_warning_of_a_submit_is_stored_with_it_and_found_after_a_restart(path, store):
    job = await submitted(store, warning=WARNING.message)
    await store.database.close()

    async with contextlib.aclosing(Closing(JobStore(Database(path)))) as closing:
        [snapshot] = await closing.store.recover()

        assert snapshot.logs == await logged(closing.store, job) == (WARNING,)


@pytest.mark.anyio
@pytest.mark.parametrize("known", [(WARNING, LINE), ()], ids=["whole", "unknown"])
async def test_the_lines_of_a_run_come_after_the_warning(store, known):
    ran = await submitted(store, warning=WARNING.message)
    assert await store.finish(await claimed(store), DONE, known, 0.1, 1.0)
    gone = await submitted(store, warning=WARNING.message)
    await store.cancel(gone, known, 1.0)

    assert await logged(store, ran) == await logged(store, gone) == (known or (WARNING,))


@pytest.mark.anyio
async def test_a_job_that_ends_while_it_waits_keeps_its_warning(store):
    waited = await submitted(store, warning=WARNING.message)
    invalid = await submitted(store, warning=WARNING.message, result=DONE)
    assert await store.finish_waiting(waited, DONE, 1.0)

    assert await logged(store, waited) == await logged(store, invalid) == (WARNING,)


# --- the outbox


@pytest.mark.anyio
async def test_due_webhooks_skip_those_in_flight_and_busy_receivers(store):
    for port in (1, 1, 2):
        await finished(store, webhook=f"http://user:pw@receiver:{port}/hook?id=1")
    first, second, third = await Outbox(store.database).due(100.0, 10)

    assert [webhook.origin for webhook in (first, third)] == ["http://receiver:1", "http://receiver:2"]
    assert await Outbox(store.database).due(100.0, 10, Busy([first.id])) == [second, third]
    assert await Outbox(store.database).due(100.0, 10, Busy(origins=["http://receiver:1"])) == [third]
    assert await Outbox(store.database).next_due_at(Busy([third.id], ["http://receiver:1"])) is None


@pytest.mark.anyio
async def test_a_failed_delivery_waits_for_its_next_turn(store):
    await finished(store, webhook="http://receiver/hook")
    (webhook,) = await Outbox(store.database).due(100.0, 10)
    await Outbox(store.database).failed(webhook, again_at=150.0)

    (again,) = await Outbox(store.database).due(150.0, 10)
    assert await Outbox(store.database).due(149.0, 10) == []
    assert await Outbox(store.database).next_due_at() == 150.0
    assert again.attempts == 1

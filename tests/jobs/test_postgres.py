"""What is PostgreSQL's own: its schema's steps, several servers on one queue, payloads outside it, lost answers."""

import asyncio
import sys
import time

import asyncpg
import msgspec
import pytest

from server.jobs.errors import DatabaseError, DatabaseTooNew, DatabaseUnusable
from server.jobs.job import LogLine, Outcome, Result, Status
from server.jobs.postgres import statements
from server.jobs.postgres.migrations import STEPS, Step, check_server, migrate
from server.jobs.store import GRACE_S
from tests.jobs.forms import LEASE, migrated
from tests.jobs.test_store import DONE, LINE, claimed, finished, new, submitted
from tests.support.server_process import clean_env

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(form):
    return form.store


# --- the schema


async def test_steps_are_made_once_each_and_in_order(postgres):
    def step(name):
        return Step([f"CREATE TABLE {name} (x int)"], serves=1)

    url = postgres.url(await postgres.new_database())
    await asyncio.gather(*(migrate(url, [step("one")]) for _ in range(4)))
    await migrate(url, [step("one"), step("two"), step("three")])
    await migrate(url, [step("one"), step("two")])

    assert await postgres.fetch(url, "SELECT made, serves FROM fourstep_schema") == [(3, 1)]
    assert await postgres.fetch(url, "SELECT count(*) FROM pg_class WHERE relname IN ('one', 'two', 'three')") == [(3,)]


async def test_a_release_that_is_too_old_for_the_schema_says_so(postgres):
    url = postgres.url(await postgres.new_database())
    await migrate(url, [*STEPS, Step(["SELECT 1"], serves=1)])
    await migrate(url)
    await migrate(url, [*STEPS, Step(["SELECT 1"], serves=1), Step(["SELECT 1"], serves=len(STEPS) + 1)])

    with pytest.raises(DatabaseTooNew, match="upgrade fourstep"):
        await migrate(url)


async def test_a_step_and_an_operation_that_wait_for_each_other_both_end(postgres):
    url = postgres.url(await postgres.new_database(await migrated(postgres)))
    step = Step(["ALTER TABLE payloads ADD COLUMN x int", "ALTER TABLE jobs ADD COLUMN x int"], serves=1)
    operation = await asyncpg.connect(url)
    async with operation.transaction():
        await operation.execute("SET deadlock_timeout = '20s'; LOCK TABLE jobs IN ROW EXCLUSIVE MODE")
        migration = asyncio.create_task(migrate(url, [*STEPS, step]))
        while not await operation.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 - of another connection
            await asyncio.sleep(0.01)
        await operation.execute("LOCK TABLE payloads IN ROW EXCLUSIVE MODE")
    await operation.close()
    await migration

    assert await postgres.fetch(url, "SELECT made FROM fourstep_schema") == [(len(STEPS) + 1,)]


async def test_a_step_that_fails_leaves_nothing(postgres):
    url = postgres.url(await postgres.new_database())

    with pytest.raises(DatabaseUnusable):
        await migrate(url, [Step(["CREATE TABLE one (x int)", "no SQL"], serves=1)])
    assert await postgres.fetch(url, "SELECT to_regclass('one'), to_regclass('fourstep_schema')") == [(None, None)]


async def test_another_programs_tables_are_left_alone(postgres):
    name = await postgres.new_database()
    await postgres.execute("CREATE TABLE jobs (x int)", database=name)

    with pytest.raises(DatabaseUnusable, match="another program's tables"):
        await migrate(postgres.url(name))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://nobody@127.0.0.1:{port}/postgres", "FOURSTEP_DATABASE or in ~/.pgpass"),
        ("postgresql://fourstep@127.0.0.1:{port}/none", "create the database"),
        ("postgresql://fourstep@none.invalid/postgres", "host names"),
        ("postgresql://fourstep@127.0.0.1:1/postgres", "takes connections from this machine"),
        ("http://fourstep@127.0.0.1/postgres", "postgresql://user@host/database"),
        ("postgresql://fourstep:se:cret@127.0.0.1:x:y/postgres", "postgresql://user@host/database"),
        ("postgresql://fourstep@127.0.0.1:{port}/postgres?target_session_attrs=standby", "takes writes"),
        ("postgresql://limited@127.0.0.1:{port}/postgres", "GRANT ALL ON SCHEMA public"),
    ],
)
async def test_a_database_that_cant_be_used_is_told_in_one_line_with_a_hint(postgres, url, said):
    await postgres.execute("DROP ROLE IF EXISTS limited", "CREATE ROLE limited LOGIN")

    with pytest.raises(DatabaseUnusable) as refused:
        await migrate(url.format(port=postgres.port), timeout_s=5.0)

    text = str(refused.value)
    assert text.startswith("database: ")
    assert said in text.partition("Hint: ")[2]
    assert "\n" not in text
    assert "cret" not in text


def test_an_old_server_is_refused():
    check_server(15)
    with pytest.raises(DatabaseUnusable, match="PostgreSQL 14 is too old"):
        check_server(14)


async def test_sqlalchemy_is_of_no_use_once_the_tables_are_there(postgres):
    await migrated(postgres)
    program = (
        "import sys; import server.jobs.postgres.store, server.jobs.postgres.outbox;"
        " sys.exit('sqlalchemy' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=clean_env())

    assert await process.wait() == 0


# --- several servers


async def test_a_live_servers_jobs_are_not_taken_for_one_lease_after_a_gap(form, store):
    request_id = await submitted(store)
    running, other = [await claimed(store)], form.worker()
    await form.forward(2 * LEASE)
    await form.execute(f"UPDATE fleet SET beat = beat - {LEASE}")  # PostgreSQL was away, for all

    assert await other.heartbeat(()) == ({}, [])
    assert await store.heartbeat(running) == ({request_id: 1}, [])
    await form.forward(LEASE + 1)
    assert await other.heartbeat(()) == ({}, [request_id])


async def test_a_heartbeat_releases_nothing_that_another_operation_is_changing(form, store):
    await submitted(store)
    job = await claimed(store)
    await form.forward(LEASE + 1)

    held, published = await asyncio.gather(form.worker().heartbeat(()), store.finish(job, DONE, [], 0.1))
    assert published != bool(held.requeued)


async def test_a_refresh_tells_states_and_who_waits(form, store):
    running, waiting, done = [await submitted(store, owner=owner) for owner in ("a", "b", "b")]
    await store.cancel(done, [LINE])
    job = await claimed(store)

    known = [await store.load(request_id) for request_id in (running, waiting, done)]
    unknown = msgspec.structs.replace(known[0], id="unknown", seq=10**9)

    states, gone, counts = await form.worker().refresh([*known, unknown])

    found = {state.id: (state.status, state.fence, state.lines, state.result_status) for state in states}
    assert found == {
        running: (Status.IN_PROGRESS, 1, 0, None),
        done: (Status.COMPLETED, 0, 1, 499),
    }
    assert gone == ["unknown"]
    assert {state.node for state in states if state.id == job.id} == {store.node}
    assert counts == {"b": 1}


async def test_one_server_at_a_time_ends_what_is_overdue(form, store):
    request_id = await submitted(store, start_timeout=1.0)
    await form.forward(2.0)
    async with form.worker().chore("overdue"):
        meanwhile = await store.end_overdue(DONE)

    assert (meanwhile, await store.end_overdue(DONE)) == ([], [request_id])


async def test_places_are_those_in_the_whole_queue(store):
    ids = [await submitted(store) for _ in range(5)]
    await claimed(store)
    known = [await store.load(ids[number]) for number in (0, 1, 3)]

    assert await store.places(known) == {ids[1]: 0, ids[3]: 2}
    assert await store.places([]) == {}


async def test_lines_of_a_running_job_are_stored_once_each_and_under_its_fence(form, store):
    lines = [LogLine(float(number), "INFO", f"line {number}") for number in range(4)]
    request_id = await submitted(store)
    job = await claimed(store)
    stored = [await store.log(job, lines[first:last], first) for first, last in ((0, 2), (1, 3))]
    await form.forward(LEASE + 1)
    await form.worker().heartbeat(())

    assert (stored, await store.log(job, lines[3:], 3)) == ([True, True], False)
    assert await store.lines(request_id, 1) == lines[1:3]
    assert await store.finish(await claimed(store), DONE, lines, 0.1)
    assert list((await store.load(request_id)).logs) == lines


async def test_a_due_webhook_is_one_servers_for_its_lease(form, store):
    await finished(store, webhook="http://receiver/hook")
    mine, other = form.outbox, form.outbox_of(form.worker())
    (webhook,) = await mine.due(10)

    assert await other.due(10) == []
    assert await other.next_due_in() == pytest.approx(30.0, abs=1.0)
    assert await mine.due(10) == [webhook]
    await form.forward(31.0)
    assert await other.due(10) == [webhook]


async def test_a_chore_is_done_by_one_server_at_a_time(form, store):
    async with store.chore("a") as first, form.worker().chore("a") as second, store.chore("b") as third:
        assert (first, second, third) == (True, False, True)
    async with form.worker().chore("a") as again:
        assert again


async def test_what_a_chore_raises_goes_through_and_frees_the_lock(form, store):
    with pytest.raises(ZeroDivisionError):
        async with store.chore("a"):
            1 / 0  # noqa: B018
    async with form.worker().chore("a") as mine:
        assert mine


# --- lost answers: the same operation again


async def test_a_cancel_whose_answer_was_lost_is_no_completed_job(form, store):
    running, waiting = [await submitted(store) for _ in range(2)]
    await claimed(store)
    form.pool.lose(1)
    first = await store.cancel(running, [])
    form.pool.lose(1)

    assert (first, await store.cancel(waiting, [])) == (Outcome.REQUESTED, Outcome.REMOVED)
    assert await store.cancel(waiting, []) is Outcome.ALREADY_COMPLETED


async def test_a_server_that_found_nothing_looks_before_it_claims_again(form, store, monkeypatch):
    asked, fetch = [], form.pool.fetch

    def noted(statement, *arguments):
        asked.append(statement)
        return fetch(statement, *arguments)

    other = form.worker()
    none = [await store.claim(1) for _ in range(2)]
    monkeypatch.setattr(form.pool, "fetch", noted)
    none.append(await store.claim(1))
    looks = asked[:]
    wish = await submitted(other)
    (job,) = await store.claim(1)

    assert none == [[], [], []]
    assert looks == [statements.LOOK]
    assert job.id == wish
    assert await store.claim(1) == []
    assert asked[-3:] == [statements.LOOK, statements.CLAIM, statements.CLAIM]


async def test_a_submit_whose_answer_was_lost_is_one_job(form, store):
    form.pool.lose(1)
    wish = new()

    snapshot = await store.submit(wish)

    assert snapshot == await store.load(wish.id)
    assert [job.id for job in await store.claim(9)] == [wish.id]


async def test_the_name_of_a_payload_whose_answer_was_lost_is_noted_once(form, store):
    form.pool.lose(1)  # that of the note
    wish = new(store_io=False)

    await store.submit(wish)

    assert [job.input for job in await store.claim(9)] == [wish.input]


async def test_a_claim_whose_answer_was_lost_is_released(form, store):
    lost = await submitted(store)
    form.pool.lose(1)

    assert await store.claim(1) == []
    await form.forward(GRACE_S + 0.1)
    assert await store.heartbeat(()) == ({}, [lost])


async def test_a_claim_that_went_unheard_costs_no_try_however_short_the_lease_is(form):
    lost = await submitted(form.store)
    hasty, other = (form.worker(lease_s=3.0) for _ in range(2))
    form.pool.lose(1)
    await hasty.claim(1)
    await form.forward(1.1)

    assert await hasty.heartbeat(()) == ({}, [lost])
    assert [job.attempt for job in await other.claim(1)] == [1]


# --- payloads


@pytest.fixture
async def outside(form):
    """A store whose payloads lie outside, but for the smallest."""
    return form.worker(inline_bytes=20)


LARGE = b'{"image_url":"data:..."}'
LARGE_RESULT = Result(200, b"x" * 100)


@pytest.mark.parametrize("wishes", [{"input": LARGE}, {"store_io": False}], ids=["large", "private"])
async def test_a_payload_outside_is_there_until_it_is_let_go(form, outside, wishes):
    request_id = await submitted(outside, **wishes)
    inputs = list(form.outside.objects.values())
    job = await claimed(outside)
    await outside.finish(job, LARGE_RESULT, [], 0.1)
    result = await outside.result(request_id)
    await form.settled()

    assert inputs == [job.input] == [new(**wishes).input]
    assert result == LARGE_RESULT
    assert list(form.outside.objects.values()) == [LARGE_RESULT.body]
    assert await outside.wipe(request_id) == [request_id]
    assert form.outside.objects == {}
    assert await form.everything() == [(None, None, 0)]


async def test_payloads_of_private_jobs_never_enter_the_database(form, store):
    await finished(store, result=Result(200, b"secret output"), store_io=False, input=b"secret input")
    await store.submit(new(store_io=False, input=b"secret input", result=Result(200, b"secret output")))

    assert await form.fetch("SELECT count(*) FROM payloads WHERE input IS NOT NULL OR output IS NOT NULL") == [(0,)]


async def test_a_payload_that_cant_be_put_refuses_its_job(form, outside):
    form.outside.away = True

    with pytest.raises(DatabaseError, match="the object store is away"):
        await outside.submit(new(input=LARGE))
    assert await form.unfinished() == []


async def test_a_claimed_job_whose_input_cant_be_read_waits_again_and_costs_no_try(form, outside):
    request_id = await submitted(outside, input=LARGE)
    form.outside.away = True
    none = await outside.claim(1)
    form.outside.away = False
    await form.forward(4.0)

    job = await claimed(outside)
    assert (none, job.id, job.input, job.attempt) == ([], request_id, LARGE, 1)


async def test_a_job_whose_input_is_gone_is_damaged(form, outside):
    await submitted(outside, input=LARGE)
    form.outside.objects.clear()

    assert (await claimed(outside)).damaged


async def test_what_was_put_for_no_row_is_swept(form, outside):
    job_id = await submitted(outside, input=LARGE)
    job = await claimed(outside)
    await form.forward(LEASE + 1)
    await form.worker().heartbeat(())
    assert not await outside.finish(job, LARGE_RESULT, [], 0.1)  # put, and then refused
    kept = dict(form.outside.objects)
    await outside.tidy(wiped=False)
    early = dict(form.outside.objects)
    await form.forward(3601.0)
    await outside.tidy(wiped=False)

    assert early == kept
    assert list(form.outside.objects.values()) == [LARGE]
    assert (await claimed(outside)).id == job_id


async def test_an_object_that_cant_be_deleted_is_swept_later(form, outside):
    await submitted(outside, input=LARGE)
    job = await claimed(outside)
    form.outside.away = True
    await outside.finish(job, DONE, [], 0.1)
    await form.settled()
    form.outside.away = False
    await outside.tidy(wiped=False)

    assert form.outside.objects == {}


async def test_usage_is_measured_anew_only_after_a_while(form):
    lazy = form.worker(measured_s=50.0)
    await submitted(lazy, owner="a", input=b"x" * 100)
    first = await lazy.input_bytes()
    await submitted(lazy, owner="a", input=b"x" * 100)
    again = await lazy.input_bytes()
    await form.forward(51.0)

    assert (first, again, await lazy.input_bytes()) == ({"a": 100}, {"a": 100}, {"a": 200})


async def test_a_server_that_changes_nothing_leaves_measuring_to_those_that_do(form, store):
    quiet, busy = form.worker(measured_s=5.0), form.worker(measured_s=5.0)
    found = [await quiet.input_bytes()]
    await submitted(busy, owner="a", input=b"x" * 100)
    await form.forward(6.0)
    found += [await quiet.input_bytes(), await busy.input_bytes(), await quiet.input_bytes()]
    await submitted(store, owner="a", input=b"x" * 100)
    await form.forward(51.0)  # that server has not measured

    assert [*found, await quiet.input_bytes()] == [{}, {}, {"a": 100}, {"a": 100}, {"a": 200}]


async def test_a_claim_that_finds_no_job_waiting_says_when(store):
    await store.claim(1)
    unseen = store.none_waited_at
    await store.claim(1, without=["a"])  # others of that owner may wait
    passed_over = store.none_waited_at
    began = time.monotonic()
    await store.claim(1)
    seen = store.none_waited_at
    await submitted(store)
    await claimed(store)

    assert unseen == passed_over < began <= seen == store.none_waited_at


@pytest.mark.parametrize("text", ["nul \0", "half \ud800"])
async def test_texts_that_postgresql_cant_store_are_stored_nearly(store, text):
    request_id = await finished(store, result=Result(500, b"{}", {}, text, "internal_error"), warning=text)

    assert (await store.load(request_id)).error.startswith(text[:4])

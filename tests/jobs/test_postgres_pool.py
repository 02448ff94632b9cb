"""Connections to PostgreSQL: what an operation does while the database is away, silent, slow, or breaks connections."""

import asyncio
import contextlib
import random
import socket
import time

import asyncpg
import pytest

from server.jobs.errors import DatabaseError, DatabaseUnusable
from server.jobs.job import NewJob
from server.jobs.postgres import faults
from server.jobs.postgres.connection import Connection, Statement, opened
from server.jobs.postgres.migrations import Step, migrate
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.store import PostgresStore
from tests.jobs.forms import MemoryPayloads, migrated
from tests.support.postgres import cluster

pytestmark = pytest.mark.anyio

ONE = Statement("one", "SELECT 1")
SLEEP = Statement("sleep", "SELECT pg_sleep($1)")
BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fourstep' AND datname = current_database()"


@pytest.fixture(scope="module")
def own():
    """A PostgreSQL that the tests of this module may kill."""
    with cluster() as running:
        yield running


@contextlib.asynccontextmanager
async def pooled(url, **settings):
    pool = Pool(url, **settings)
    try:
        yield pool
    finally:
        await pool.close()


async def eventually(holds):
    """Wait until something holds, for some seconds."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


class Proxy:
    """Between the pool and PostgreSQL: breaks, delays, swallows or replaces what is sent. `broken`: its chance, each
    time; `replaced`: bytes, and as many others."""

    def __init__(self, port):
        self._port = port
        self.broken = 0.0
        self.delay_s = 0.0
        self.silent = False
        self.replaced = (b"", b"")
        self.open = 0
        self._chance = random.Random(1)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.silent = False
        await eventually(lambda: not self.open)

    async def _serve(self, reader, writer):
        self.open += 1
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [
            asyncio.ensure_future(self._pass(reader, their_writer)),
            asyncio.ensure_future(self._pass(their_reader, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (writer, their_writer):
            each.transport.abort()
        self.open -= 1

    async def _pass(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if self._chance.random() < self.broken:
                    return
                await eventually(lambda: not self.silent)
                await asyncio.sleep(self.delay_s / 2)
                writer.write(data.replace(*self.replaced))


async def test_operations_share_a_few_connections_and_are_timed(postgres):
    seen = []
    async with pooled(postgres.url(), connections=3, observe=lambda *event: seen.append(event)) as pool:
        await asyncio.gather(*(pool.fetch(SLEEP, 0.01) for _ in range(9)))

        assert pool.opened == 3
        assert [operation for operation, _ in seen] == ["sleep"] * 9
        assert min(seconds for _, seconds in seen) >= 0.01


async def test_a_statement_is_planned_once_for_each_connection(postgres):
    plans = Statement("plans", "SELECT generic_plans FROM pg_prepared_statements WHERE statement = $1::text")
    async with pooled(postgres.url(), connections=1) as pool:
        for _ in range(3):
            await pool.fetch(ONE)

        assert [list(row) for row in await pool.fetch(plans, ONE.text)] == [[3]]


async def test_a_connection_need_not_ask_for_types_that_the_one_before_has_asked_for(postgres):
    asked = []
    for _ in range(2):
        raw = await opened(postgres.url(), timeout_s=30.0)
        raw.add_query_logger(lambda query: asked.append(query.query))
        arrays = Statement("arrays", "SELECT $1::bigint[], $2::boolean[], $3::float8[]")
        rows = await Connection(raw).fetch(arrays, ([1], [True], [0.5]), time.monotonic() + 30.0)
        assert [tuple(row) for row in rows] == [([1], [True], [0.5])]
        await raw.fetch(ONE.text)
        await raw.close()

    assert asked.count(ONE.text) == 2
    assert sum("pg_type" in query for query in asked) <= 1


async def test_connections_that_are_not_needed_are_closed(postgres):
    name = await postgres.new_database()
    async with pooled(postgres.url(name), kept_idle_s=0.05) as pool:
        await asyncio.gather(*(pool.fetch(SLEEP, 0.02) for _ in range(8)))
        await asyncio.sleep(0.1)
        for _ in range(8):
            await pool.fetch(ONE)

        assert pool.opened == 1


async def test_what_comes_after_closing_leaves_no_connection(postgres):
    async with pooled(postgres.url()) as pool:
        await pool.fetch(ONE)

    assert await pool.fetch(ONE) == [(1,)]
    assert pool.opened == 0


async def test_closing_leaves_no_connection(postgres):
    name = await postgres.new_database()
    async with pooled(postgres.url(name)) as pool:
        await asyncio.gather(*(pool.fetch(SLEEP, 0.01) for _ in range(8)))

    await asyncio.sleep(0.2)  # PostgreSQL ends its processes by and by
    assert await postgres.fetch(postgres.url(name), BACKENDS) == [(0,)]
    assert pool.opened == 0


async def test_a_write_is_carried_out_though_its_caller_has_left(postgres):
    async with pooled(postgres.url(await migrated_copy(postgres))) as pool:
        store = PostgresStore(pool, MemoryPayloads(), node="a")
        wish = NewJob(app="a/b", input=b"{}")
        written = store.submit(wish)
        written.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await written
        await asyncio.gather(*pool._writes)

        assert await store.load(wish.id) is not None


async def migrated_copy(cluster):
    return await cluster.new_database(await migrated(cluster))


async def test_a_statement_at_fault_fails_at_once_and_its_values_are_in_no_error(postgres):
    async with pooled(postgres.url()) as pool:
        with pytest.raises(DatabaseError, match='column "none" does not exist'):
            await pool.fetch(Statement("fault", "SELECT none"))
        with pytest.raises(DatabaseError) as refused:
            await pool.fetch(SLEEP, "secret prompt")

        assert "secret" not in str(refused.value)
        assert pool.up


async def test_a_restart_costs_operations_time_and_nothing_else(own):
    async with pooled(own.url()) as pool:
        await asyncio.gather(*(pool.fetch(SLEEP, 0.01) for _ in range(4)))
        running = [asyncio.ensure_future(pool.fetch(SLEEP, 0.2)) for _ in range(4)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(own.restart)

        assert await asyncio.gather(*running, pool.fetch(ONE)) == [running[0].result()] * 4 + [[(1,)]]
        assert pool.up


async def test_a_database_that_stays_away_is_waited_for_no_longer_than_patience(own):
    async with pooled(own.url(), patience_s=2.0) as pool:
        await pool.fetch(ONE)
        own.kill()
        try:
            began = time.monotonic()
            failed = await asyncio.gather(*(pool.fetch(ONE) for _ in range(20)), return_exceptions=True)
            waited = time.monotonic() - began
            down = pool.down_since
        finally:
            own.start()

        assert {type(error) for error in failed} == {DatabaseError}
        assert "takes connections from this machine" in failed[0].hint
        assert waited < 4.0
        assert down == pytest.approx(time.time(), abs=60)
        assert await pool.fetch(ONE) == [(1,)]
        assert pool.up


async def test_nothing_hangs_on_a_silent_connection(postgres):
    async with Proxy(postgres.port) as proxy, pooled(postgres.url(port=proxy.port), patience_s=2.0) as pool:
        await asyncio.gather(*(pool.fetch(SLEEP, 0.02) for _ in range(8)))
        proxy.silent = True
        began = time.monotonic()
        failed = await asyncio.gather(*(pool.fetch(ONE) for _ in range(20)), return_exceptions=True)
        waited = time.monotonic() - began

        assert {str(error) for error in failed} == {"PostgreSQL does not answer"}
        assert waited < 4.0
        assert pool.opened == 0
        proxy.silent = False
        assert await pool.fetch(ONE) == [(1,)]


@contextlib.asynccontextmanager
async def refusing_once(code, message):
    """The URL of what refuses its first connection, as PostgreSQL would, and has no word for the next ones."""
    fields = f"SFATAL\0VFATAL\0C{code}\0M{message}\0\0".encode()
    refusals = [b"E" + (len(fields) + 4).to_bytes(4, "big") + fields]
    begun, ended = [], []

    async def answer(reader, writer):
        begun.append(writer)
        await reader.read(1)
        if refusals:
            writer.write(refusals.pop())
        else:
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.append(writer)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        try:
            yield f"postgresql://fourstep@127.0.0.1:{server.sockets[0].getsockname()[1]}/postgres?sslmode=disable"
        finally:
            await eventually(lambda: len(ended) == len(begun))


@pytest.mark.parametrize("code", ["08003", "08006", "57P01", "57P02", "57P03"])
def test_a_connection_that_is_lost_has_a_hint(code):
    error = asyncpg.PostgresError.new({"C": code, "M": "terminating connection"})

    assert "takes connections from this machine" in faults.database_error(error).hint


async def test_what_the_database_said_before_it_fell_silent_is_told():
    async with refusing_once("57P03", "the database system is starting up") as url, pooled(url, patience_s=2.0) as pool:
        with pytest.raises(DatabaseError, match="is starting up"):
            await pool.fetch(ONE)


async def test_so_it_is_at_a_start():
    async with refusing_once("57P03", "the database system is starting up") as url:
        with pytest.raises(DatabaseUnusable, match=r"is starting up.*takes connections from this machine"):
            await migrate(url, timeout_s=1.0, patience_s=2.0)


async def test_a_pooler_that_knows_fewer_settings_is_refused_without_waiting():
    async with refusing_once("08P01", "unsupported startup parameter: enable_seqscan") as url:
        with pytest.raises(DatabaseUnusable, match=r"enable_seqscan.*not a pooler such as PgBouncer"):
            await migrate(url, patience_s=60.0)


async def test_a_pooler_that_drops_settings_is_refused(postgres):
    async with Proxy(postgres.port) as proxy:
        proxy.replaced = (b"plan_cache_mode\0", b"a_pooler.ate_it\0")
        with pytest.raises(DatabaseUnusable, match=r"does not keep its settings.*not a pooler such as PgBouncer"):
            await migrate(postgres.url(port=proxy.port))


async def test_one_silent_connection_spoils_the_idle_ones_only_once(postgres):
    async with Proxy(postgres.port) as proxy, pooled(postgres.url(port=proxy.port), patience_s=2.0) as pool:
        await asyncio.gather(*(pool.fetch(SLEEP, 0.02) for _ in range(8)))
        proxy.silent = True
        with pytest.raises(DatabaseError):
            await pool.fetch(ONE)
        proxy.silent = False

        assert await pool.fetch(ONE) == [(1,)]
        assert pool.opened == 1


async def test_a_slow_connection_is_waited_for(postgres):
    async with Proxy(postgres.port) as proxy, pooled(postgres.url(port=proxy.port), patience_s=2.0) as pool:
        await pool.fetch(ONE)
        proxy.delay_s = 0.8

        assert await pool.fetch(ONE) == [(1,)]


async def test_broken_connections_lose_no_job_and_leak_none(postgres):
    name = await migrated_copy(postgres)
    async with Proxy(postgres.port) as proxy, pooled(postgres.url(name, proxy.port)) as pool:
        store = PostgresStore(pool, MemoryPayloads(), node="a")
        proxy.broken = 0.05
        jobs = [NewJob(app="a/b", input=b"{}") for _ in range(200)]
        accepted = await asyncio.gather(*(store.submit(job) for job in jobs))
        proxy.broken = 0.0
        connections = pool.opened

        assert {snapshot.id for snapshot in accepted} == {job.id for job in jobs}
        assert await postgres.fetch(postgres.url(name), "SELECT count(*), count(DISTINCT id) FROM jobs") == [(200, 200)]
        assert connections <= 8
        await eventually(lambda: proxy.open == connections)


async def test_a_server_that_stops_waits_for_the_database_for_a_second_at_most(own):
    async with pooled(own.url()) as pool:
        await pool.fetch(ONE)
        own.kill()
        try:
            pool.hurry()
            began = time.monotonic()
            with pytest.raises(DatabaseError):
                await pool.fetch(ONE)
            waited = time.monotonic() - began
        finally:
            own.start()

        assert waited < 3.0


async def test_a_lost_connection_frees_its_chore(own):
    async with pooled(own.url()) as pool, pool.chore("a") as mine:
        await asyncio.to_thread(own.restart)
        async with pool.chore("a") as again:
            assert (mine, again) == (True, True)


async def test_what_was_committed_survives_a_kill(own):
    name = await own.new_database()
    await migrate(own.url(name))
    async with pooled(own.url(name)) as pool:
        store = PostgresStore(pool, MemoryPayloads(), node="a")
        accepted = []

        async def submit():
            for _ in range(60):
                snapshot = await store.submit(NewJob(app="a/b", input=b"{}"))
                accepted.append(snapshot.id)

        submitting = [asyncio.ensure_future(submit()) for _ in range(4)]
        for _ in range(2):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(own.restart)
        await asyncio.gather(*submitting)

        assert sorted(await own.fetch(own.url(name), "SELECT id FROM jobs")) == sorted((each,) for each in accepted)


async def test_a_start_waits_for_a_database_that_is_started_too(own, caplog):
    url = own.url(await own.new_database())
    own.kill()
    with pytest.raises(DatabaseUnusable):
        await migrate(url)
    starting = asyncio.create_task(migrate(url, patience_s=60.0))
    await eventually(lambda: "can't be used yet" in caplog.text)
    await asyncio.to_thread(own.start)

    await starting


async def test_a_start_goes_on_when_its_connection_breaks(postgres):
    url = postgres.url(await postgres.new_database())
    slow = [Step(["SELECT pg_sleep(0.3)"], serves=1)]
    starting = asyncio.create_task(migrate(url, slow, patience_s=60.0))
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(0.3)' AND datname = '{}'"
    )
    for _ in range(1000):
        if await postgres.fetch(url, end.format(url.rpartition("/")[2])):
            break

    await starting


async def test_of_several_hosts_the_one_that_takes_writes_is_found(postgres):
    hosts = f"127.0.0.1:1,127.0.0.1:{postgres.port}"
    async with pooled(f"postgresql://fourstep@{hosts}/postgres?target_session_attrs=read-write") as pool:
        assert await pool.fetch(ONE) == [(1,)]


async def test_a_silent_host_leaves_time_for_the_next_and_is_asked_last_from_then_on(postgres):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{postgres.port}"
        async with pooled(f"postgresql://fourstep@{hosts}/postgres", patience_s=6.0) as pool:
            first = await pool.fetch(ONE)
            began = time.monotonic()
            await asyncio.gather(*(pool.fetch(SLEEP, 0.05) for _ in range(8)))

            assert first == [(1,)]
            assert time.monotonic() - began < 3.0  # its share


async def test_a_primary_that_becomes_a_standby_is_left_and_looked_for_until_patience_is_over(postgres):
    name = await migrated_copy(postgres)
    url = f"{postgres.url(name)}?target_session_attrs=read-write"
    async with pooled(url, patience_s=1.0) as pool:
        store = PostgresStore(pool, MemoryPayloads(), node="a")
        await store.submit(NewJob(app="a/b", input=b"{}"))
        await postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await pool.fetch(Statement("demote", "SELECT set_config('default_transaction_read_only', 'on', false)"))

        with pytest.raises(DatabaseError) as failed:
            await store.submit(NewJob(app="a/b", input=b"{}"))
        assert "one of the hosts takes writes" in failed.value.hint
        await postgres.execute(
            f"SET default_transaction_read_only = off; ALTER DATABASE {name} RESET default_transaction_read_only"
        )
        assert await store.submit(NewJob(app="a/b", input=b"{}"))

"""The primary ends as by a power cut, and a synchronous standby takes its place: nothing acknowledged is lost."""

import asyncio
import time

import pytest

from server.jobs.job import NewJob
from server.jobs.postgres.migrations import migrate
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.store import PostgresStore
from tests.jobs.forms import MemoryPayloads
from tests.support.postgres import cluster

pytestmark = pytest.mark.anyio

SUBMITTED_BEFORE = 300
CLIENTS = 16


@pytest.fixture(scope="module")
def pair():
    with cluster() as primary, cluster(primary=primary) as standby:
        yield primary, standby


async def test_a_failover_loses_nothing_and_servers_go_on_by_themselves(pair):
    primary, standby = pair
    await primary.follow_synchronously()
    await migrate(primary.url())
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    pool = Pool(f"postgresql://fourstep@{hosts}/postgres?target_session_attrs=read-write", patience_s=20.0)
    store = PostgresStore(pool, MemoryPayloads(), node="a")
    acknowledged = []  # request ids, and when

    async def submit():
        while not stopped:
            snapshot = await store.submit(NewJob(app="a/b", input=b"{}"))
            acknowledged.append((snapshot.id, time.monotonic()))

    stopped = False
    clients = [asyncio.ensure_future(submit()) for _ in range(CLIENTS)]
    while len(acknowledged) < SUBMITTED_BEFORE:  # noqa: ASYNC110 - clients note what they were answered, and no more
        await asyncio.sleep(0.01)
    await asyncio.to_thread(primary.kill)
    before = len(acknowledged)
    await standby.promote()
    promoted = time.monotonic()
    while len(acknowledged) < before + CLIENTS:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    stopped = True
    await asyncio.gather(*clients)
    await pool.close()

    stored = {row[0] for row in await standby.fetch(standby.url(), "SELECT id FROM jobs")}
    assert {request_id for request_id, _ in acknowledged} <= stored
    assert next(at for _, at in acknowledged if at > promoted) - promoted < 1.0

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

CLIENTS = 16


async def failed_over(primary, standby, submits, *, cut_off=False):
    """Submit that many jobs and more, then promote the standby in the dead primary's place, and submit again.

    Return how many were acknowledged, how many of those the standby has not, and the seconds from the promotion to the
    first commit. `cut_off`: the standby hears nothing of the second half.
    """
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
    while len(acknowledged) < submits / 2:  # noqa: ASYNC110 - clients note what they were answered, and no more
        await asyncio.sleep(0.01)
    if cut_off:
        await asyncio.to_thread(standby.stop)
    while len(acknowledged) < submits:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.to_thread(primary.kill)
    if cut_off:
        await asyncio.to_thread(standby.start)
    before = len(acknowledged)
    await standby.promote()
    promoted = time.monotonic()
    while len(acknowledged) < before + CLIENTS:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    stopped = True
    await asyncio.gather(*clients)
    await pool.close()

    stored = {row[0] for row in await standby.fetch(standby.url(), "SELECT id FROM jobs")}
    lost = sum(request_id not in stored for request_id, _ in acknowledged)
    return len(acknowledged), lost, next(at for _, at in acknowledged if at > promoted) - promoted


@pytest.mark.parametrize("submits", [300, pytest.param(5000, marks=pytest.mark.long)])
async def test_a_failover_loses_nothing_and_servers_go_on_by_themselves(submits):
    with cluster() as primary, cluster(primary=primary) as standby:
        await primary.follow_synchronously()
        await migrate(primary.url())
        acknowledged, lost, first_s = await failed_over(primary, standby, submits)

    print(f"{acknowledged} acknowledged, {lost} lost, first commit {first_s:.3f} s after the promotion")
    assert lost == 0
    assert first_s < 1.0


@pytest.mark.long
async def test_a_standby_that_commits_do_not_wait_for_loses_some():
    with cluster() as primary, cluster(primary=primary) as standby:
        await migrate(primary.url())
        _, lost, _ = await failed_over(primary, standby, 300, cut_off=True)

    assert lost > 0

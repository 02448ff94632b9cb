"""The writer's thread: who shares a transaction, and who does not share a failure."""

import asyncio
import contextlib
import itertools
import threading

import pytest

from server.jobs.sqlite.group_commit import Closed, GroupCommit

pytestmark = pytest.mark.anyio


class Log:
    """Stands for a database: what was committed, transaction by transaction. The first one waits for `go`."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.go = threading.Event()

    @contextlib.contextmanager
    def transaction(self):
        pending: list[str] = []
        yield pending
        self.go.wait(10)
        self.commits.append(pending)

    @property
    def written(self) -> list[str]:
        return list(itertools.chain(*self.commits))


def fails(pending: list[str]) -> None:
    raise ValueError("no")


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def writer(log):
    writer = GroupCommit(log.transaction, "test")
    yield writer
    log.go.set()
    writer.close()


async def test_what_arrives_during_a_commit_shares_the_next_one(log, writer):
    running = threading.Event()
    first = writer.submit(lambda pending: (pending.append("first"), running.set()))
    await asyncio.to_thread(running.wait, 10)
    rest = [writer.submit(lambda pending, n=n: pending.append(str(n))) for n in range(5)]
    log.go.set()
    await asyncio.gather(first, *rest)

    assert log.commits == [["first"], ["0", "1", "2", "3", "4"]]


async def test_futures_resolve_in_the_order_of_submission(log, writer):
    order: list[int] = []
    futures = [writer.submit(lambda pending: None) for _ in range(20)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: order.append(number))
    log.go.set()
    await asyncio.gather(*futures)
    await asyncio.sleep(0)

    assert order == list(range(20))


async def test_one_that_fails_leaves_its_neighbours_alone(log, writer):
    log.go.set()
    good = [writer.submit(lambda pending, n=n: pending.append(str(n)) or n) for n in range(3)]
    bad = writer.submit(fails)
    more = writer.submit(lambda pending: pending.append("more") or 3)
    ends = await asyncio.gather(*good, bad, more, return_exceptions=True)

    assert [end for end in ends if not isinstance(end, ValueError)] == [0, 1, 2, 3]
    assert sorted(log.written) == ["0", "1", "2", "more"]


async def test_a_write_happens_though_its_caller_has_left(log, writer):
    left = writer.submit(lambda pending: pending.append("left"))
    left.cancel()
    log.go.set()
    await writer.submit(lambda pending: None)

    assert "left" in log.written


async def test_closing_writes_what_was_submitted_and_refuses_the_rest(log, writer):
    log.go.set()
    kept = writer.submit(lambda pending: pending.append("kept") or "kept")
    await asyncio.to_thread(writer.close)

    assert await kept == "kept"
    with pytest.raises(Closed):
        await writer.submit(lambda pending: None)

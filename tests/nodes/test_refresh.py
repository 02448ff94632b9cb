"""The refresh: what it tells the index, what it stops, what it asks of the database and how often."""

import math
import time
from types import SimpleNamespace

import pytest

from server.jobs.job import LogLine, Status
from server.jobs.store import State
from server.nodes.index import SharedIndex
from server.nodes.refresh import Refresh
from tests.nodes.test_shared_index import LINE, job

pytestmark = pytest.mark.anyio


class Store:
    """What the database says, as a test has it; and what it was asked."""

    node = "me"

    def __init__(self):
        self.states, self.waiting, self.asked, self.logged, self.loaded = [], {}, [], [], {}
        self.none_waited_at = -math.inf
        self.overdue_ended = 0

    async def load(self, request_id):
        return self.loaded.get(request_id)

    async def refresh(self, known):
        ids = sorted(snapshot.id for snapshot in known)
        self.asked.append(ids)
        stored = {state.id for state in self.states}
        return (
            [state for state in self.states if state.id in ids],
            [each for each in ids if each not in stored],
            self.waiting,
        )

    async def places(self, known):
        self.asked.append("places")
        return {snapshot.id: 7 for snapshot in known}

    async def lines(self, request_id, first):
        self.asked.append(("lines", first))
        return [LINE]

    async def log(self, job, lines, first):
        self.logged.append((job.id, [line.message for line in lines], first))
        return True

    async def end_overdue(self, result):
        self.overdue_ended += 1


def state(name, status=Status.IN_PROGRESS, *, fence=1, node="me", lines=0, result_status=None):
    return State(name, status, fence, node, lines, 0.0, result_status, None, None, expired=False)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def index():
    return SharedIndex()


@pytest.fixture
def follower(store, index):
    return Refresh(store, index)


async def test_a_server_with_nothing_to_do_asks_more_rarely(store, index):
    follower = Refresh(store, index, idle_s=60.0)
    for _ in range(3):
        await follower.tick()
    idle = store.asked[:]
    run_here(index)
    store.states = [state("here")]
    for _ in range(2):
        await follower.tick()

    assert idle == [[]]
    assert store.asked == [[], ["here"], ["here"]]


async def test_while_jobs_wait_it_is_asked_how_many_each_time(store, index):
    store.waiting = {"alice": 1}
    follower = Refresh(store, index, idle_s=60.0)
    for _ in range(3):
        await follower.tick()

    assert store.asked == [[], [], []]


def run_here(index, name="here", fence=1):
    index.found(job(name), 0)
    index.started(SimpleNamespace(id=name, fence=fence))


@pytest.mark.parametrize(
    ("now", "lost"),
    [
        (state("here"), []),
        (state("here", Status.IN_QUEUE, fence=0, node=None), []),  # read before our claim was committed
        (state("here", Status.COMPLETED, result_status=200), []),  # our own end
        (state("here", Status.IN_QUEUE, node=None), ["here"]),  # our lease has run out
        (state("here", fence=2, node="other"), ["here"]),
        (state("here", fence=2), ["here"]),  # ours again, but not this run of it
        (state("here", Status.COMPLETED, node="cancel-1-IN_PROGRESS", result_status=499), ["here"]),
    ],
)
async def test_what_runs_here_is_stopped_once_it_is_no_longer_this_servers(store, index, follower, now, lost):
    run_here(index)
    store.states = [now]

    assert await follower.tick() == lost


async def test_what_another_server_has_ended_is_known_with_its_log(store, index, follower):
    index.found(job("there"), 0)
    store.states = [state("there", Status.COMPLETED, node="other", lines=1, result_status=200)]
    await follower.tick()

    snapshot = index.get("there")
    assert (snapshot.status, snapshot.result_status, snapshot.logs) == (Status.COMPLETED, 200, (LINE,))


async def test_a_log_is_read_from_the_first_line_that_is_not_known_and_only_if_there_is_more(store, index, follower):
    index.found(job("there", Status.IN_PROGRESS), None)
    store.states = [state("there", node="other", lines=1)]
    await follower.tick()
    await follower.tick()

    assert [asked for asked in store.asked if asked[0] == "lines"] == [("lines", 0)]


async def test_what_is_stored_no_longer_is_forgotten(store, index, follower):
    index.found(job("gone"), 0)
    await follower.tick()

    assert index.get("gone") is None


async def test_places_are_told_but_asked_for_no_more_often_than_their_share(store, index):
    follower = Refresh(store, index, places_share=1e-9)
    index.found(job("waits"), 0)
    store.states = [state("waits", Status.IN_QUEUE, fence=0, node=None)]
    await follower.tick()
    await follower.tick()

    assert index.get("waits").queue_position == 7
    assert store.asked.count("places") == 1


async def test_lines_of_a_long_run_are_stored_once_each(store, index):
    follower = Refresh(store, index, log_every_s=0.0)
    run_here(index)
    store.states = [state("here")]
    index.logged("here", LogLine(1.0, "INFO", "first"))
    for _ in range(3):
        await follower.tick()
    index.logged("here", LogLine(2.0, "INFO", "second"))
    await follower.tick()

    assert store.logged == [("here", ["first"], 0), ("here", ["second"], 1)]


async def test_a_server_whose_claims_see_that_nothing_waits_does_not_ask(store, index):
    follower = Refresh(store, index, idle_s=60.0)
    store.none_waited_at = time.monotonic()
    for _ in range(2):
        await follower.tick()
    quiet = store.asked[:]
    run_here(index)
    await follower.tick()

    assert (quiet, store.asked) == ([], [["here"]])


@pytest.mark.parametrize("waiting", [{}, {"alice": 1}])
async def test_what_is_overdue_is_ended_once_a_second_while_jobs_wait(store, follower, waiting):
    store.waiting = waiting
    await follower.tick()
    await follower.tick()

    assert store.overdue_ended == len(waiting)


async def test_a_job_is_found_in_the_database_with_its_place_and_followed_from_then_on(store, index, follower):
    store.loaded = {"waits": job("waits")}
    found = await follower.find("waits")
    await follower.find("unknown")
    await follower.tick()

    assert found.queue_position == 7
    assert store.asked[1] == ["waits"]

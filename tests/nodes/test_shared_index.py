"""The index of one of several servers: what it keeps, what it forgets, what only it knows."""

from types import SimpleNamespace

import msgspec

from server.jobs.job import LogLine, NewJob, Snapshot, Status
from server.nodes.index import ASKED_S, SharedIndex

LINE = LogLine(1.0, "INFO", "4 steps")


def job(name, status=Status.IN_QUEUE):
    new = NewJob(app="fal-ai/lcm-sd15-i2i", input=b"{}", id=name, owner="alice")
    return msgspec.structs.replace(Snapshot.accepted(new, 1, 0.0), status=status)


def ids(snapshots):
    return [snapshot.id for snapshot in snapshots]


class Clock:
    """Time as the test has it."""

    now = 0.0

    def __call__(self):
        return self.now


def test_what_is_asked_for_no_longer_is_forgotten_but_not_what_runs_here_or_is_watched():
    clock = Clock()
    index = SharedIndex(clock=clock)
    for name in ("asked", "here", "watched"):
        index.found(job(name), 0)
    index.started(SimpleNamespace(id="here", fence=1))
    watcher = index.watch("watched")
    clock.now = ASKED_S + 1
    first = index.of_interest()
    index.unwatch("watched", watcher)

    assert (ids(first), ids(index.of_interest())) == (["here", "watched"], ["here"])


def test_asking_keeps_a_job_for_longer():
    clock = Clock()
    index = SharedIndex(clock=clock)
    index.found(job("asked"), 0)
    clock.now = ASKED_S
    index.get("asked")
    clock.now = ASKED_S + 1

    assert ids(index.of_interest()) == ["asked"]


def test_a_job_that_runs_here_keeps_the_lines_that_the_database_has_not_yet():
    index = SharedIndex()
    index.found(job("here"), 0)
    index.started(SimpleNamespace(id="here", fence=1))
    index.logged("here", LINE)
    index.found(job("here", Status.IN_PROGRESS), None)

    assert index.logs("here") == (LINE,)


def test_what_may_have_ended_since_is_not_certain():
    index = SharedIndex()
    index.found(job("waits"), 3)

    assert index.get("waits").queue_position == 3
    assert index.get("waits", certain=True) is None


def test_waiting_jobs_are_those_of_all_servers_and_what_this_one_has_added_since():
    index = SharedIndex()
    index.count({"alice": 2, "bob": 1})
    index.add(job("new"))
    counted = index.waiting, index.owned("alice"), index.others_than(["alice"])
    index.count({"alice": 3})

    assert counted == (4, 3, True)
    assert (index.waiting, index.others_than(["alice"])) == (3, False)


def test_a_watcher_hears_of_a_change_once():
    index = SharedIndex()
    index.found(job("here"), 0)
    watcher = index.watch("here")
    index.renew("here", status=Status.IN_PROGRESS)
    heard = watcher.changed.is_set()
    watcher.changed.clear()
    index.renew("here", status=Status.IN_PROGRESS)

    assert (heard, watcher.changed.is_set()) == (True, False)

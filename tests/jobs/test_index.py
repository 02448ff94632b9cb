"""The index of jobs: who hears when that a job has moved up, and what is made for all who watch it."""

from types import SimpleNamespace

import pytest

from server.jobs.index import JobIndex
from server.jobs.job import LogLine, NewJob, Result, Snapshot

TURNS = 5


def queued(index, count):
    """Add `count` waiting jobs; return their ids in order."""
    jobs = [NewJob(app="fal-ai/lcm-sd15-i2i", input=b"{}", id=str(seq)) for seq in range(count)]
    for seq, job in enumerate(jobs):
        index.add(Snapshot.accepted(job, seq, 0.0))
    return [job.id for job in jobs]


def running(request_id):
    """The job as its claim returns it."""
    return SimpleNamespace(id=request_id)


def told(index, request_id):
    """A watcher that has been told the job's position."""
    watcher = index.watch(request_id)
    watcher.position = index.get(request_id).queue_position
    return watcher


def heard(index, watchers, ticks=1):
    """How many of the watchers hear something within these ticks, each told the truth at once."""
    total = 0
    for _ in range(ticks):
        index.wake_waiting()
        for request_id, watcher in watchers:
            if watcher.changed.is_set():
                total += 1
                watcher.changed.clear()
                watcher.position = index.get(request_id).queue_position
    return total


def test_those_near_the_front_hear_at_once_that_they_move_up():
    index = JobIndex(near=4, turns=TURNS)
    first, *others = queued(index, 6)
    watchers = [(request_id, told(index, request_id)) for request_id in others]
    index.started(running(first))

    assert heard(index, watchers[:4]) == 4


def test_those_far_from_the_front_hear_it_in_turns_each_once():
    index = JobIndex(near=0, turns=TURNS)
    first, far = queued(index, 2)
    watchers = [(far, told(index, far)) for _ in range(4 * TURNS)]
    index.started(running(first))

    assert [heard(index, watchers) for _ in range(2 * TURNS)] == [4] * TURNS + [0] * TURNS


def test_of_many_watchers_of_a_near_job_the_first_hear_at_once():
    index = JobIndex(near=4, prompt=3, turns=TURNS)
    first, near = queued(index, 2)
    watchers = [(near, told(index, near)) for _ in range(3 + 10 * TURNS)]
    index.started(running(first))

    assert 3 <= heard(index, watchers) <= 3 + 10
    assert heard(index, watchers, TURNS) >= 10 * (TURNS - 1)


def test_who_has_heard_nothing_new_is_left_in_peace():
    index = JobIndex(turns=1)
    waiting, *_ = queued(index, 3)
    watchers = [(waiting, told(index, waiting))]
    index.add(Snapshot.accepted(NewJob(app="a/b", input=b"{}"), 99, 0.0))

    assert heard(index, watchers) == 0


@pytest.mark.parametrize(
    "happens",
    [
        lambda index, job: index.started(running(job)),
        lambda index, job: index.finished(job, Result(200, b"")),
    ],
    ids=["started", "finished"],
)
def test_what_is_no_position_is_told_to_all_at_once(happens):
    index = JobIndex(near=0, turns=TURNS)
    [job] = queued(index, 1)
    watchers = [told(index, job) for _ in range(2 * TURNS)]
    happens(index, job)

    assert all(watcher.changed.is_set() for watcher in watchers)


def test_what_is_told_is_made_once_for_all_who_have_heard_as_much():
    index, made = JobIndex(), []
    [job] = queued(index, 1)
    told(index, job)
    index.started(running(job))
    index.logged(job, LogLine(0.0, "INFO", "a"))
    index.logged(job, LogLine(0.0, "INFO", "b"))

    def make(snapshot):
        made.append([line.message for line in snapshot.logs])
        return len(made)

    answers = [index.change(job, since).once("form", make) for since in (0, 0, 1, 0)]

    assert (answers, made) == ([1, 1, 2, 1], [["a", "b"], ["b"]])
    assert index.change(job, 0).once("other form", make) == 3


def test_a_new_state_is_made_anew():
    index = JobIndex()
    first, second = queued(index, 2)
    told(index, second)
    before = index.change(second, 0)
    index.started(running(first))
    moved = index.change(second, 0)
    index.started(running(second))

    assert [change.snapshot.queue_position for change in (before, moved, index.change(second, 0))] == [1, 0, None]


def test_nothing_is_kept_of_watchers_that_have_left():
    index = JobIndex()
    [job] = queued(index, 1)
    watchers = [index.watch(job) for _ in range(3)]
    for watcher in watchers:
        index.unwatch(job, watcher)

    assert index._watched == {}

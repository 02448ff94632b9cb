"""The durable queue: accept, claim, run, heartbeat, cancel, expire.

A submit is answered once the job is on disk. A `Runner` claims waiting jobs, as many as the engines have room for, and
calls `run` for each; what that returns or raises is the job's result. After a crash `start` finds every accepted job at
its old place in the queue, and jobs that had not finished run again.

Positions, status and log lines are answered from the in-memory `JobIndex`, which a `Follower` keeps up to date.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from server.fal.errors import overloaded
from server.jobs.attempt import Run
from server.jobs.errors import DatabaseError, log_database_error, refusal
from server.jobs.index import Change, JobIndex
from server.jobs.job import NewJob, Outcome, Result, Snapshot, cancelled
from server.jobs.retention import Retention
from server.jobs.runner import Runner, commit
from server.jobs.store import JobStore
from server.jobs.times import SHIPPED, QueueTimes
from server.logs import fault
from server.settings import QueueSettings

LOG = logging.getLogger(__name__)

# Before the time for what is in flight is over, so that a stream's end is still sent.
_LAST_WORD_S = 0.5


class Follower(Protocol):
    """Keeps the index in step with the database, beside what the queue itself tells it."""

    async def start(self) -> None:
        """Take the database over, before the queue claims the first job. Raises `DatabaseError`."""
        ...

    async def tick(self) -> Collection[str]:
        """Bring the index up to date; return the ids of jobs that this server runs and must not go on with.

        Called every tenth of a second.
        """
        ...

    async def find(self, request_id: str) -> Snapshot | None:
        """Return a job that is not in the index, or not for certain; None if there is no such job."""
        ...

    def chore(self, name: str) -> AbstractAsyncContextManager[bool]:
        """Context of work that one server at a time does for all: whether it is this one."""
        ...


class Queue:
    """The queue of one server. `capacity()`: how many jobs may be with the engines at once, 0 while there is none;
    `calls()`: how many other requests are."""

    def __init__(
        self,
        store: JobStore,
        index: JobIndex,
        follower: Follower,
        run: Run,
        *,
        capacity: Callable[[], int],
        calls: Callable[[], int] = lambda: 0,
        settings: QueueSettings,
        key_share: float,
        times: QueueTimes = SHIPPED,
    ) -> None:
        self._store = store
        self._settings = settings
        self._times = times
        self._index = index
        self._follower = follower
        self.webhook_due = self._index.webhook_due
        self._retention = Retention(store, self._index.forget, settings, key_share=key_share, chore=follower.chore)
        self._runner = Runner(
            store,
            self._index,
            run,
            find=follower.find,
            capacity=capacity,
            calls=calls,
            key_share=key_share,
            times=times,
        )
        self._scheduler: asyncio.Task[None] | None = None
        self._housekeeping: list[asyncio.Task[None]] = []
        self._shut = False
        self._unwatched = False

    async def start(self) -> None:
        """Take the database over and begin to run its unfinished jobs."""
        await self._follower.start()
        self._scheduler = _start("queue-scheduler", self._runner.schedule())
        for every_s, work in (
            (self._times.tick, self._tick),
            (self._times.heartbeat, self._runner.heartbeat),
            (self._times.quota, self._retention.keep_quota),
            (self._times.expire, self._retention.expire),
        ):
            self._housekeeping.append(_start(f"queue-{work.__name__}", self._every(every_s, work)))

    @property
    def draining(self) -> bool:
        """Whether the queue claims no more jobs, as the server leaves."""
        return self._runner.draining

    def drain(self) -> None:
        """Claim no more jobs; jobs are still accepted, and running ones go on."""
        self._runner.drain()

    def shut(self, grace_s: float = 0.0) -> None:
        """Accept and claim no more jobs; running jobs go on.

        A watch ends once its job can't end any more while this server is there, and shortly before `grace_s` after
        draining began.
        """
        self.drain()
        self._shut = True
        self._runner.shut()
        self._index.wake_all()
        left = self._runner.left(grace_s) - _LAST_WORD_S
        asyncio.get_running_loop().call_later(max(0.0, left), self._end_watches)

    def _end_watches(self) -> None:
        self._unwatched = True
        self._index.wake_all()

    async def close(self, grace_s: float = 10.0) -> None:
        """Shut, and put jobs that still run `grace_s` after draining began back into the queue."""
        self.shut()
        asyncio.get_running_loop().call_later(self._runner.left(grace_s), self._store.hurry)
        await asyncio.gather(*filter(None, [self._scheduler]), return_exceptions=True)
        await self._runner.close(grace_s)
        for task in self._housekeeping:  # until now: what still runs keeps its lease
            task.cancel()
        await asyncio.gather(*self._housekeeping, return_exceptions=True)

    # --- for the routes

    def length(self) -> int:
        """Return the number of waiting jobs."""
        return self._index.waiting

    def owned(self, owner: str) -> int:
        """Return the number of waiting jobs of one owner."""
        return self._index.owned(owner)

    @property
    def in_flight(self) -> int:
        """Number of running jobs."""
        return self._runner.in_flight

    def expected_wait_s(self, room: int) -> float:
        """Return how long a job would wait that is submitted now, where `room` jobs are done at once; 0 if unknown."""
        return self.length() * (self._runner.mean_s or 0.0) / max(room, 1)

    def wake(self) -> None:
        """Look for work now. To be called when the capacity has grown."""
        self._runner.wake()

    async def submit(self, new: NewJob) -> Snapshot:
        """Accept a job; it is on disk when this returns. Raises `RequestError` (429) if the queue is full."""
        if new.result is None:
            self._admit(new)
        written = self._store.submit(new)
        self._index.submitting(new.owner)
        written.add_done_callback(lambda _: self._index.submitted(new.owner))
        self.wake()  # now, so that the claim shares the submit's transaction
        try:
            snapshot = await commit(written, self._accepted)
        except DatabaseError as error:
            log_database_error(LOG, "a job could not be stored", error)
            raise refusal(error) from error
        return self._index.get(new.id) or snapshot

    def _accepted(self, snapshot: Snapshot) -> None:
        self._index.add(snapshot)
        self.wake()  # again: a claim on another connection has not seen it

    def _admit(self, new: NewJob) -> None:
        if self._shut:
            raise overloaded("The server is shutting down")
        if self.length() >= self._settings.max_queue:
            raise overloaded("The queue is full")
        if new.max_owned is not None and self.owned(new.owner) >= new.max_owned:
            raise overloaded("This key has too many requests in the queue")
        if new.max_queue_length is not None and self.length() > new.max_queue_length:
            raise overloaded(f"The queue is longer than fal_max_queue_length={new.max_queue_length}")
        self._retention.admit(new)

    async def get(self, request_id: str, *, certain: bool = False) -> Snapshot | None:
        """Return the job's present snapshot; None if there is no such job.

        Without `certain` one that has just ended may still be shown as waiting or running, for a tenth of a second.
        """
        return self._index.get(request_id, certain=certain) or await self._follower.find(request_id)

    async def result(self, request_id: str) -> Result | None:
        """Return the result of a completed job; None if it is not completed or its payload has been deleted."""
        return await self._store.result(request_id)

    async def delivered(self, snapshot: Snapshot) -> None:
        """Note that the owner has the result; wipe it if the owner asked for that (`X-Fal-Store-IO: 0`)."""
        if not snapshot.store_io:
            await self._retention.forget(snapshot.id)

    async def delete(self, request_id: str) -> None:
        """Delete what is stored of an ended job but its tombstone. Raises `DatabaseError` if that can't be done."""
        await self._retention.delete(request_id)

    async def cancel(self, request_id: str) -> Outcome:
        """Cancel a job. After an outcome of 200 or 202 its result is 499, for good.

        Raises `RequestError` (429) if that can't be stored.
        """
        known = self._index.get(request_id)
        cancelling = self._store.cancel(request_id, known.logs if known else ())
        try:
            return await commit(cancelling, lambda outcome: self._cancelled(request_id, outcome))
        except DatabaseError as error:
            log_database_error(LOG, "a job could not be cancelled", error)
            raise refusal(error) from error

    def _cancelled(self, request_id: str, outcome: Outcome) -> None:
        if outcome in {Outcome.REMOVED, Outcome.REQUESTED}:
            self._index.finished(request_id, cancelled())
        if outcome is Outcome.REQUESTED:
            self._runner.cancel(request_id)

    async def watch(self, request_id: str) -> AsyncGenerator[Change, None]:
        """Yield the job's state, now and at every change, to its end.

        Ends early as `shut` says; yields nothing for an unknown id. Close it (`contextlib.aclosing`) after use.
        """
        watcher = self._index.watch(request_id)
        told, place = 0, None
        try:
            while change := self._index.change(request_id, told) or await self._stored(request_id):
                snapshot = change.snapshot
                if snapshot.logs or _place(snapshot) != place:
                    told, place = told + len(snapshot.logs), _place(snapshot)
                    watcher.position = snapshot.queue_position
                    yield change
                if snapshot.completed or self._unwatched or (self._shut and not self._index.may_end(snapshot)):
                    return
                await watcher.changed.wait()
                watcher.changed.clear()
        finally:
            self._index.unwatch(request_id, watcher)

    async def _stored(self, request_id: str) -> Change | None:
        snapshot = await self._follower.find(request_id)
        return None if snapshot is None else Change(snapshot)

    # --- housekeeping

    async def _every(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except DatabaseError as error:
                log_database_error(LOG, "the queue's housekeeping failed", error)
                await asyncio.sleep(self._times.disk_retry)
            except Exception as error:  # noqa: BLE001 - without leases and expiry no server can go on for long
                fault("the queue's housekeeping failed", error)
                await asyncio.sleep(self._times.disk_retry)
            await asyncio.sleep(seconds)

    async def _tick(self) -> None:
        for request_id in await self._follower.tick():
            self._runner.cancel(request_id)
        self._index.wake_waiting()


def _start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task that the queue depends on; if it ends by an error, that is logged."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            fault(f"{name} has died", error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task


def _place(snapshot: Snapshot) -> tuple[str, int | None]:
    return snapshot.status.value, snapshot.queue_position

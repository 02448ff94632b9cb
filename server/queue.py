"""The durable queue: accept, claim, run, heartbeat, cancel, expire.

A submit is answered once the job is on disk. A scheduler claims waiting jobs, as many as the engines have room for, and
runs each through the `run` that it was given; what that returns or raises is the job's result. Whatever kills the
server, `start` finds every accepted job, at its old place in the queue, and runs again what had not finished.

Positions, status and log lines are answered from the `Board`, which follows each commit; the database is the truth.
"""

import asyncio
import collections
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from pipelines.types import Log
from server.attempt import Attempt, Retry, Run
from server.board import Board
from server.database import DatabaseError, complain
from server.errors import overloaded
from server.job_store import JobStore
from server.jobs import Job, LogLine, NewJob, Outcome, Result, Snapshot, cancelled, start_timed_out
from server.retention import Retention
from server.settings import Settings

LOG = logging.getLogger(__name__)

T = TypeVar("T")

TICK_S = 0.1  # how late a start timeout, a changed queue position or a freed engine may be noticed
LEASE_S = 60.0  # a worker that is silent for so long has lost its jobs
HEARTBEAT_S = 15.0
DISK_RETRY_S = 1.0  # a result that can't be written is kept and tried again: a full disk loses nothing
QUOTA_EVERY_S = 1.0
EXPIRE_EVERY_S = 30.0


class Queue:
    """`capacity()` says how many jobs may be in the engines' hands at once: 0 while there is no engine."""

    def __init__(
        self,
        store: JobStore,
        run: Run,
        *,
        capacity: Callable[[], int],
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._run = run
        self._capacity = capacity
        self._settings = settings
        self._now = clock
        self.on_webhook: Callable[[], None] = lambda: None  # called when a webhook has become due
        self._worker = uuid.uuid4().hex
        self._board = Board()
        self._retention = Retention(store.attic, self._board.forget, settings, clock)
        self._running: set[Attempt] = set()
        self._submitting: collections.Counter[str] = collections.Counter()  # by owner
        self._nudge = asyncio.Event()
        self._closing = False
        self._drained_at = 0.0
        self._scheduler: asyncio.Task[None] | None = None
        self._chores: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Takes the database over and begins to run what is in it. Raises `DatabaseInUse`."""
        for snapshot in await self._store.recover():
            self._board.add(snapshot)
        self._scheduler = _start("queue-scheduler", self._schedule())
        for every_s, chore in (
            (TICK_S, self._tick),
            (HEARTBEAT_S, self._heartbeat),
            (QUOTA_EVERY_S, self._retention.keep_quota),
            (EXPIRE_EVERY_S, self._retention.expire),
        ):
            self._chores.append(_start(f"queue-{chore.__name__}", self._every(every_s, chore)))

    def drain(self) -> None:
        """Takes and claims no more, and lets go of who watches; what runs goes on."""
        if not self._closing:
            self._closing, self._drained_at = True, time.monotonic()
            self.wake()
            self._board.wake_all()

    async def close(self, grace_s: float = 10.0) -> None:
        """Drains; puts back into the queue what still runs `grace_s` after draining began."""
        self.drain()
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, *filter(None, [self._scheduler]), return_exceptions=True)
        tasks = [attempt.task for attempt in self._running if attempt.task is not None]
        if tasks:
            left = max(0.0, self._drained_at + grace_s - time.monotonic())
            _, late = await asyncio.wait(tasks, timeout=left)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # --- what the routes ask

    def length(self) -> int:
        """Jobs that wait."""
        return self._board.waiting + self._submitting.total()

    def owned(self, owner: str) -> int:
        """Those of one owner."""
        return self._board.owned(owner) + self._submitting[owner]

    @property
    def in_flight(self) -> int:
        """Jobs that run."""
        return len(self._running)

    def wake(self) -> None:
        """Looks for work now: the capacity has grown."""
        self._nudge.set()

    async def submit(self, new: NewJob) -> Snapshot:
        """Accepts a job; it is on disk when this returns. Raises `RequestError` (429) if the queue is full."""
        if new.result is None:
            self._admit(new)
        written = self._store.submit(new, self._now())
        self._submitting[new.owner] += 1
        written.add_done_callback(lambda _: self._submitted(new.owner))
        self.wake()  # now, so that the claim shares the submit's transaction
        try:
            snapshot = await self._commit(written, self._accepted)
        except DatabaseError as error:
            complain(LOG, "a job could not be stored", error)
            raise overloaded("The server can't store requests at present") from error
        return self._board.get(new.id) or snapshot

    def _admit(self, new: NewJob) -> None:
        if self._closing:
            raise overloaded("The server is shutting down")
        if self._retention.disk_full:
            raise overloaded("The queue's disk quota is used up")
        if self.length() >= self._settings.max_queue:
            raise overloaded("The queue is full")
        if new.max_owned is not None and self.owned(new.owner) >= new.max_owned:
            raise overloaded("This key has too many requests in the queue")
        if new.max_queue_length is not None and self.length() > new.max_queue_length:
            raise overloaded(f"The queue is longer than fal_max_queue_length={new.max_queue_length}")

    def _submitted(self, owner: str) -> None:
        self._submitting[owner] -= 1
        if not self._submitting[owner]:
            del self._submitting[owner]

    def _accepted(self, snapshot: Snapshot) -> None:
        self._board.add(snapshot)
        if snapshot.completed and snapshot.webhook is not None:
            self.on_webhook()

    async def get(self, request_id: str) -> Snapshot | None:
        """The job as it stands; None if there is no such job."""
        return self._board.get(request_id) or await self._store.load(request_id)

    async def result(self, request_id: str) -> Result | None:
        """The result of a completed job; None if it is not completed, or its payload is gone."""
        return await self._store.result(request_id)

    async def delivered(self, snapshot: Snapshot) -> None:
        """The result has reached its owner: wipes it if that is what the owner asked for (`X-Fal-Store-IO: 0`)."""
        if not snapshot.store_io:
            await self._retention.forget(snapshot.id)

    async def cancel(self, request_id: str) -> Outcome:
        """Ends a job. Once this has returned 200 or 202, its result is 499 and stays that. Raises `RequestError` (429)
        when that can't be stored."""
        known = self._board.get(request_id)
        cancelling = self._store.cancel(request_id, known.logs if known else (), self._now())
        try:
            return await self._commit(cancelling, lambda outcome: self._cancelled(request_id, outcome))
        except DatabaseError as error:
            complain(LOG, "a job could not be cancelled", error)
            raise overloaded("The server can't store a cancellation at present") from error

    def _cancelled(self, request_id: str, outcome: Outcome) -> None:
        if outcome in {Outcome.REMOVED, Outcome.REQUESTED}:
            self._finished(request_id, cancelled())
        for attempt in self._running:
            if outcome is Outcome.REQUESTED and attempt.job.id == request_id:
                attempt.cancel()

    async def watch(self, request_id: str) -> AsyncGenerator[Snapshot, None]:
        """The job as it stands, then again whenever that changes, to its end; `logs` has only the lines not yet told.
        Ends early when the queue closes; has nothing for an unknown id. Close it (`contextlib.aclosing`) when done."""
        changed = asyncio.Event()
        self._board.watch(request_id, changed)
        told, place = 0, None
        try:
            while (snapshot := await self.get(request_id)) is not None:
                news = msgspec.structs.replace(snapshot, logs=snapshot.logs[told:])
                if news.logs or _place(news) != place:
                    yield news
                    told, place = len(snapshot.logs), _place(news)
                if snapshot.completed or self._closing:
                    return
                await changed.wait()
                changed.clear()
        finally:
            self._board.unwatch(request_id, changed)

    # --- claiming and running

    async def _schedule(self) -> None:
        while not self._closing:
            free = self._capacity() - len(self._running)
            if free <= 0 or not self.length():
                await self._wait_for_work()
                continue
            self._nudge.clear()
            claimed = await self._claim(free)
            for job in claimed:
                self._spawn(job)
            if len(claimed) < free:
                await self._wait_for_work()

    async def _claim(self, count: int) -> list[Job]:
        try:
            served = self._well_served(count)
            return await self._store.claim(self._worker, count, LEASE_S, self._now(), after_others=served)
        except DatabaseError as error:
            complain(LOG, "jobs could not be claimed", error)
            return []

    def _well_served(self, free: int) -> list[str]:
        """Owners who have their share of the engines already, while others wait.

        So a key with a thousand jobs in the queue does not keep out one with a single job.
        """
        running = collections.Counter(attempt.job.owner for attempt in self._running)
        share = max(1, int((free + running.total()) * self._settings.key_share))
        served = [owner for owner, count in running.items() if count >= share]
        return served if served and self._board.others_than(served) else []

    async def _wait_for_work(self) -> None:
        try:
            async with asyncio.timeout(TICK_S):
                await self._nudge.wait()
        except TimeoutError:
            pass
        self._nudge.clear()

    def _spawn(self, job: Job) -> None:
        known = self._board.get(job.id)
        if known is not None and known.completed:  # cancelled since it was claimed
            return
        start_in = None if job.start_by is None else max(0.0, job.start_by - self._now())
        attempt = Attempt(job, self._run, start_in=start_in, on_log=lambda log: self._log(job, log))
        self._running.add(attempt)
        self._board.started(job.id)
        attempt.task = asyncio.create_task(self._execute(attempt), name=f"job-{job.id}")

    def _log(self, job: Job, log: Log) -> None:
        self._board.logged(job.id, LogLine(self._now(), log.level, log.message))

    async def _execute(self, attempt: Attempt) -> None:
        job = attempt.job
        try:
            end = await attempt.make()
            if isinstance(end, Retry):
                await self._release(job, end)
            else:
                await self._publish(job, end, attempt.took)
        except asyncio.CancelledError:
            if self._closing:
                await self._release(job, Retry(0.0, refund=True))
            raise
        finally:
            self._running.discard(attempt)
            self.wake()

    async def _publish(self, job: Job, result: Result, took: float) -> None:
        known = self._board.get(job.id)
        logs = known.logs if known else ()

        def follow(mine: bool) -> None:  # noqa: FBT001 - what `finish` resolves to
            if mine:
                self._finished(job.id, result, took)

        await self._insist(lambda: self._store.finish(job, result, logs, took, self._now()), follow)

    async def _release(self, job: Job, end: Retry) -> None:
        def follow(mine: bool) -> None:  # noqa: FBT001 - what `release` resolves to
            if mine:
                self._board.requeued(job.id)

        after = self._now() + end.delay_s
        await self._insist(lambda: self._store.release(job, refund=end.refund, after=after), follow)

    def _finished(self, request_id: str, result: Result, inference_time: float = 0.0) -> None:
        self._board.finished(request_id, result, inference_time)
        known = self._board.get(request_id)
        if known is not None and known.webhook is not None:
            self.on_webhook()

    # --- writing

    async def _commit(self, written: asyncio.Future[T], follow: Callable[[T], None]) -> T:
        """Waits for a write; `follow` brings the board up to date, in the order of commits, even if the waiter has
        been cancelled meanwhile."""

        def settled(done: asyncio.Future[T]) -> None:
            if not done.cancelled() and done.exception() is None:
                follow(done.result())

        written.add_done_callback(settled)
        return await asyncio.shield(written)

    async def _insist(self, write: Callable[[], asyncio.Future[T]], follow: Callable[[T], None]) -> None:
        """Writes, again and again if need be: the disk may be full, and the result is still in hand."""
        while True:
            try:
                await self._commit(write(), follow)
            except DatabaseError as error:
                complain(LOG, "a job's end could not be stored", error)
                if self._closing:
                    return
                await asyncio.sleep(DISK_RETRY_S)
            else:
                return

    # --- chores

    async def _every(self, seconds: float, chore: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await chore()
            except DatabaseError as error:
                complain(LOG, "the queue's housekeeping failed", error)
                await asyncio.sleep(DISK_RETRY_S)
            await asyncio.sleep(seconds)

    async def _tick(self) -> None:
        self._board.wake_waiting()
        await asyncio.gather(*map(self._give_up_waiting, self._board.overdue(self._now())))

    async def _give_up_waiting(self, request_id: str) -> None:
        result = start_timed_out()

        def follow(ended: bool) -> None:  # noqa: FBT001 - what `finish_waiting` resolves to
            if ended:
                self._finished(request_id, result)

        await self._commit(self._store.finish_waiting(request_id, result, self._now()), follow)

    async def _heartbeat(self) -> None:
        """Renews leases first, then takes lapsed ones back: a server that was frozen keeps what is still its own."""
        before = list(self._running)
        held = await self._store.heartbeat(self._worker, LEASE_S, self._now())
        for attempt in before:
            if held.get(attempt.job.id) != attempt.job.fence:
                attempt.cancel()
        for request_id in await self._store.release_lapsed(self._now()):
            self._board.requeued(request_id)


def _start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task without which the queue is no queue: its death is never silent."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.critical("%s has died", name, exc_info=error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task


def _place(snapshot: Snapshot) -> tuple[str, int | None]:
    return snapshot.status.value, snapshot.queue_position

"""Jobs that this server runs: it claims as many as the engines have room for, runs each and publishes its result.

A claim is a lease, which `heartbeat` renews. Whether a result may still be published is decided by the job's fence: the
number that the claim returned, compared with the stored one in the publishing transaction.
"""

import asyncio
import collections
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pipelines.messages import Log
from server.jobs.attempt import Attempt, Retry, Run
from server.jobs.errors import DatabaseError, log_database_error
from server.jobs.index import JobIndex
from server.jobs.job import Job, LogLine, Result, Snapshot
from server.jobs.store import JobStore
from server.jobs.times import QueueTimes
from server.logs import fault

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_WEIGHT = 0.1  # of the newest job in the average: it follows a change within some twenty


class Runner:
    """Claims and runs jobs, and brings `index` up to date. Knows nothing of the queue.

    `find` brings a job into the index which is not there.

    `capacity()` returns how many jobs may be with the engines at once: 0 while none can be had; `calls()` how many
    other requests are. A job for which these leave no room is claimed once it has waited for `times.left`. `key_share`
    is the part of the engines that one owner may have while others wait. Jobs that wait for a large picture to be
    decoded come on top: their owners get no more of them than that part while others wait, and than twice the capacity
    else.
    """

    def __init__(
        self,
        store: JobStore,
        index: JobIndex,
        run: Run,
        *,
        find: Callable[[str], Awaitable[Snapshot | None]],
        capacity: Callable[[], int],
        calls: Callable[[], int],
        key_share: float,
        times: QueueTimes,
    ) -> None:
        self._store = store
        self._index = index
        self._run = run
        self._find = find
        self._capacity = capacity
        self._calls = calls
        self._key_share = key_share
        self._times = times
        self._running: set[Attempt] = set()
        self._claimed: dict[str, Job] = {}  # that are about to run: heartbeats name them too
        self._nudge = asyncio.Event()
        self._drained_at = 0.0
        self._found_at = time.monotonic()  # when there was a job to claim
        self._mean_s: float | None = None
        self.draining = False
        self._patient = True

    @property
    def in_flight(self) -> int:
        """Number of running jobs."""
        return len(self._running)

    @property
    def mean_s(self) -> float | None:
        """Seconds that a job took of late, on average; None before the first."""
        return self._mean_s

    def wake(self) -> None:
        """Look for work now. To be called when there is more work or more capacity."""
        self._nudge.set()

    def cancel(self, request_id: str) -> None:
        """Stop the job if it runs here."""
        for attempt in self._running:
            if attempt.job.id == request_id:
                attempt.cancel()

    def drain(self) -> None:
        """Claim no more jobs; running ones go on."""
        if not self.draining:
            self.draining, self._drained_at = True, time.monotonic()
            self.wake()

    def shut(self) -> None:
        """Insist no longer on writes that fail: the server ends before long."""
        self._patient = False

    def left(self, grace_s: float) -> float:
        """Return the seconds until `grace_s` after draining began."""
        return max(0.0, self._drained_at + grace_s - time.monotonic())

    async def close(self, grace_s: float) -> None:
        """Put jobs that still run `grace_s` after draining began back into the queue."""
        tasks = [attempt.task for attempt in self._running if attempt.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.left(grace_s))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def heartbeat(self) -> None:
        """Renew the leases, and release lapsed ones."""
        before = list(self._running)
        held = await self._store.heartbeat([*(attempt.job for attempt in before), *self._claimed.values()])
        for attempt in before:
            if held.fences.get(attempt.job.id) != attempt.job.fence:
                attempt.cancel()
        for request_id in held.requeued:
            self._index.requeued(request_id)

    # --- claiming and running

    async def schedule(self) -> None:
        """Claim and run jobs, until `drain`."""
        while not self.draining:
            free = self._capacity() - sum(not attempt.decoding for attempt in self._running)
            if free <= 0 or not self._index.may_wait():
                await self._wait_for_work()
                continue
            self._nudge.clear()
            claimed = await self._claim(free)
            if claimed:
                self._found_at = time.monotonic()
            for job in claimed:
                await self._meet(job)
                self._spawn(job)
            if len(claimed) < free:
                await self._wait_for_work()

    async def _claim(self, free: int) -> list[Job]:
        """Claim jobs for which the engines have room; and old ones, up to `free` in all."""
        room = max(0, free - self._calls()) if self._times.left else free
        served, held_up = self._well_served(free), self._held_up()
        claimed: list[Job] = []
        try:
            if room:
                claimed += await self._keep(self._store.claim(room, after_others=served, without=held_up))
            if len(claimed) == room < free:
                without = [*served, *held_up]
                old = self._store.claim_old(free - room, waited_s=self._times.left, without=without)
                claimed += await self._keep(old)
        except DatabaseError as error:
            log_database_error(LOG, "jobs could not be claimed", error)
        except Exception as error:  # noqa: BLE001 - a job that can't be read must not end the scheduler
            fault("jobs could not be claimed", error)
        else:
            return claimed
        await asyncio.sleep(self._times.disk_retry)
        return claimed

    async def _keep(self, claim: asyncio.Future[list[Job]]) -> list[Job]:
        """Return what was claimed. Heartbeats name it from then on, also if the waiter was cancelled."""
        return await commit(claim, lambda jobs: self._claimed.update({job.id: job for job in jobs}))

    async def _meet(self, job: Job) -> None:
        """Bring a job into the index that was submitted to another server."""
        if self._index.get(job.id) is None:
            try:
                await self._find(job.id)
            except DatabaseError as error:  # it runs all the same; its log here begins with the run
                log_database_error(LOG, "a claimed job's log could not be read", error)

    def _well_served(self, free: int) -> list[str]:
        """Return the owners who already have their share of the engines, if others wait.

        So a key with a thousand jobs in the queue does not delay one with a single job.
        """
        running = collections.Counter(attempt.job.owner for attempt in self._running if not attempt.decoding)
        share = max(1, int((free + running.total()) * self._key_share))
        served = [owner for owner, count in running.items() if count >= share]
        return served if served and self._index.others_than(served) else []

    def _held_up(self) -> list[str]:
        """Return the owners who have enough jobs with large pictures, decoded or waiting for it.

        That is their part of the capacity while others wait, else twice the capacity.
        """
        decoding = collections.Counter(attempt.job.owner for attempt in self._running if attempt.decoding)
        capacity = self._capacity()

        def with_at_least(limit: int) -> list[str]:
            return [owner for owner, count in decoding.items() if count >= limit]

        held = with_at_least(max(1, int(capacity * self._key_share)))
        return held if self._index.others_than(held) else with_at_least(2 * capacity)

    async def _wait_for_work(self) -> None:
        lull = time.monotonic() > self._found_at + self._times.lull
        try:
            async with asyncio.timeout(self._times.ask_in_lull if lull else self._times.ask):
                await self._nudge.wait()
        except TimeoutError:
            pass
        self._nudge.clear()

    def _spawn(self, job: Job) -> None:
        del self._claimed[job.id]
        known = self._index.get(job.id)
        if known is not None and known.completed:  # cancelled since it was claimed
            return
        attempt = Attempt(job, self._run, on_log=lambda log: self._log(job, log), on_decoding=self.wake)
        self._running.add(attempt)
        self._index.started(job)
        attempt.task = asyncio.create_task(self._execute(attempt), name=f"job-{job.id}")
        attempt.task.add_done_callback(lambda _: self._ended(attempt))

    def _ended(self, attempt: Attempt) -> None:
        # No part of the task: one that is cancelled before it begins does nothing at all.
        self._running.discard(attempt)
        self.wake()

    def _log(self, job: Job, log: Log) -> None:
        self._index.logged(job.id, LogLine(time.time(), log.level, log.message))

    async def _execute(self, attempt: Attempt) -> None:
        job = attempt.job
        try:
            end = await attempt.make()
            if isinstance(end, Retry):
                await self._release(job, end)
            else:
                await self._publish(job, end, attempt.took)
        except asyncio.CancelledError:
            if self.draining:
                await self._release(job, Retry(0.0, refund=True))
            raise

    async def _publish(self, job: Job, result: Result, took: float) -> None:
        known = self._index.get(job.id)
        logs = known.logs if known else ()

        def follow(mine: bool) -> None:  # noqa: FBT001 - what `finish` resolves to
            if mine:
                self._index.finished(job.id, result, took)
                self._mean_s = took if self._mean_s is None else self._mean_s + _WEIGHT * (took - self._mean_s)

        await self._insist(lambda: self._store.finish(job, result, logs, took), follow)

    async def _release(self, job: Job, end: Retry) -> None:
        def follow(mine: bool) -> None:  # noqa: FBT001 - what `release` resolves to
            if mine:
                self._index.requeued(job.id)

        await self._insist(lambda: self._store.release(job, refund=end.refund, delay_s=end.delay_s), follow)

    async def _insist(self, write: Callable[[], asyncio.Future[T]], follow: Callable[[T], None]) -> None:
        """Repeat a write until it succeeds: the disk may be full, and the result exists only in memory."""
        while True:
            try:
                await commit(write(), follow)
            except DatabaseError as error:
                log_database_error(LOG, "a job's end could not be stored", error)
                if not self._patient:
                    return
                await asyncio.sleep(self._times.disk_retry)
            else:
                return


async def commit(written: asyncio.Future[T], follow: Callable[[T], None]) -> T:
    """Wait for a write. `follow` is called with its value in the order of commits, also if the waiter was cancelled."""

    def settled(done: asyncio.Future[T]) -> None:
        if not done.cancelled() and done.exception() is None:
            follow(done.result())

    written.add_done_callback(settled)
    return await asyncio.shield(written)

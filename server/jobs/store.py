"""Durable jobs: a small set of operations, each all or nothing and resolved once it is on disk. Two forms of it:

    sqlite/    a file in the data folder, for one server
    postgres/  a PostgreSQL that several servers share

A job, its events and its webhook change together. A worker may publish a result only under the job's fence, the number
of its claims so far: another claim since then has made it void. No operation is told the time: what waits for a time
does so by the store's own clock, which is one for all who share it. Every operation raises `DatabaseError`, when the
database can't be used at present; then it may have happened all the same, and is repeated in the same words.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from server.jobs.job import Job, LogLine, NewJob, Outcome, Result, Snapshot, Status

GRACE_S = 5.0  # a claim that no heartbeat names for longer was never heard of by the one who made it


class Held(NamedTuple):
    """What a heartbeat has found: request id → fence of the worker's jobs, and ids of those that wait again."""

    fences: Mapping[str, int]
    requeued: Sequence[str]


class State(NamedTuple):
    """A job as the database has it now. `lines`: how many its log has. `node`: who holds it, or has ended it."""

    id: str
    status: Status
    fence: int
    node: str | None
    lines: int
    inference_time: float
    result_status: int | None
    error: str | None
    error_type: str | None
    expired: bool


class JobStore(Protocol):
    """The jobs of one database, as one worker sees them: claims and leases are that worker's.

    Operations are called from the event loop. Those that return futures write, and are carried out even if the caller
    no longer waits.
    """

    # --- a job's life

    def submit(self, new: NewJob) -> asyncio.Future[Snapshot]:
        """Store a new job. One that has a result already is COMPLETED, and its webhook due at once.

        Submitted again under the same id it is the same job.
        """
        ...

    def claim(
        self, count: int, *, after_others: Collection[str] = (), without: Collection[str] = ()
    ) -> asyncio.Future[list[Job]]:
        """Claim up to `count` waiting jobs under a lease, by priority, then in order of acceptance.

        Jobs of the owners in `after_others` are claimed only if there are no others, and those of the owners in
        `without` not at all.
        """
        ...

    def claim_old(self, count: int, *, waited_s: float, without: Collection[str] = ()) -> asyncio.Future[list[Job]]:
        """Claim those of the next `count` waiting jobs, in the same order, that were accepted `waited_s` ago."""
        ...

    def finish(self, job: Job, result: Result, logs: Sequence[LogLine], inference_time: float) -> asyncio.Future[bool]:
        """Publish a worker's result. False if the job is no longer that worker's: then nothing was changed.

        Nor is anything by doing so again under the same fence, which is True.
        `logs`: all lines of the job, of which some may be stored already.
        """
        ...

    def cancel(self, request_id: str, logs: Sequence[LogLine]) -> asyncio.Future[Outcome]:
        """End a job at its owner's request. Once this has resolved, no worker can publish a result for it."""
        ...

    def end_overdue(self, result: Result) -> asyncio.Future[list[str]]:
        """End with `result` the waiting jobs whose start timeout has run out. Return their request ids."""
        ...

    def release(self, job: Job, *, refund: bool, delay_s: float) -> asyncio.Future[bool]:
        """Put a job back at its old place, not to be claimed for `delay_s`. With `refund` the try does not count.

        False if the job is no longer that worker's: then nothing was changed.
        """
        ...

    def heartbeat(self, running: Collection[Job]) -> asyncio.Future[Held]:
        """Renew the leases of the jobs that this worker runs, then put back those whose lease has run out.

        In this order, so that a frozen worker keeps its jobs if no other has taken them. Put back are also jobs
        claimed by this worker more than `GRACE_S` ago (of several servers at most a third of the lease) which are not
        among `running`: the claim's answer was lost.
        """
        ...

    # --- reading

    async def load(self, request_id: str) -> Snapshot | None:
        """Return the job's snapshot with its log, without its queue position; None if there is no such job."""
        ...

    async def result(self, request_id: str) -> Result | None:
        """Return the result; None before the job's end, after its expiry and for unknown ids."""
        ...

    # --- letting go; each returns the request ids whose payloads it has deleted, leaving a tombstone

    def expire(self, older_s: float, count: int, owner: str | None = None) -> asyncio.Future[list[str]]:
        """Expire the oldest jobs (of one owner) that ended at least `older_s` ago, at most `count`.

        Those whose webhook is still to be delivered are kept.
        """
        ...

    def wipe(self, request_id: str) -> asyncio.Future[list[str]]:
        """Delete what is stored of an ended job, so that nothing of it can be read from the disk."""
        ...

    def wipe_private(self, request_id: str) -> asyncio.Future[list[str]]:
        """Do so if its owner asked for no storing (`X-Fal-Store-IO: 0`), unless its webhook is to be delivered."""
        ...

    def delete_tombstones(self, older_s: float, count: int) -> asyncio.Future[None]:
        """Delete up to `count` expired jobs that ended at least `older_s` ago."""
        ...

    async def used_bytes(self) -> int:
        """Return how much of the disk quota is used."""
        ...

    async def input_bytes(self) -> Mapping[str, int]:
        """Return the bytes of the inputs of unfinished jobs, by owner."""
        ...

    async def result_bytes(self) -> Mapping[str, int]:
        """Return the bytes of stored results, by owner."""
        ...

    async def tidy(self, *, wiped: bool) -> None:
        """Give free space back to the disk; if something was wiped, also from the database's log."""
        ...

    # --- the end

    def hurry(self) -> None:
        """Let no write wait for others from now on: the server stops."""
        ...

    async def close(self) -> None:
        """Write out what was submitted, as far as can be done, then let the database go."""
        ...


class Webhook(msgspec.Struct, frozen=True):
    """A due delivery: outbox row, URL and its origin, attempts made; job id; owner."""

    id: int
    url: str
    origin: str
    attempts: int
    request_id: str
    owner: str


class Busy(NamedTuple):
    """What is not to be delivered now: rows that are in flight; origins and owners that have enough in flight."""

    in_flight: Sequence[int] = ()
    origins: Sequence[str] = ()
    owners: Sequence[str] = ()


NOTHING_BUSY = Busy()


class Outbox(Protocol):
    """Webhooks still to be delivered. Each is put in by what ends its job."""

    async def due(self, count: int, busy: Busy = NOTHING_BUSY) -> list[Webhook]:
        """Return up to `count` due deliveries, oldest first, without those that `busy` excludes.

        Where several servers share the outbox they are this one's for half a minute, and longer while it names them.
        """
        ...

    async def next_due_in(self, busy: Busy = NOTHING_BUSY) -> float | None:
        """Return in how many seconds the next delivery is due, with the same exceptions; None if there is none."""
        ...

    def failed(self, webhook: Webhook, again_in_s: float) -> asyncio.Future[None]:
        """Record one more attempt, and when the next is due."""
        ...

    def done(self, webhook: Webhook) -> asyncio.Future[None]:
        """Remove a webhook: it was delivered or given up."""
        ...

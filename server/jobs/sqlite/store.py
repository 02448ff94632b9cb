"""The jobs of one SQLite database. Each write is a transaction of its own; those that come together share a flush."""

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from typing_extensions import override

from server.jobs.clock import SteadyClock
from server.jobs.job import Job, LogLine, NewJob, Outcome, Result, Snapshot, Status, cancelled, origin
from server.jobs.sqlite import rows
from server.jobs.sqlite import statements as sql
from server.jobs.sqlite.database import Database, secure_delete
from server.jobs.store import GRACE_S, Held, JobStore

LEASE_S = 60.0  # a worker that is silent for longer has lost its jobs: four heartbeats
FREE_PAGES_AT_ONCE = 2048  # 8 MiB given back to the disk in one transaction, so that submits wait milliseconds for it


class _End(NamedTuple):
    """A job's end: the job, the fence and status that its finisher saw, the result, the log, the worker if one did."""

    seq: int
    fence: int
    seen: Status
    result: Result
    now: float
    logs: Sequence[LogLine] = ()
    inference_time: float = 0.0
    worker: str | None = None


class SQLiteStore(JobStore):
    """See `JobStore`. `clock` gives Unix time in seconds; `lease_s` is how long a claim holds without a heartbeat."""

    def __init__(self, database: Database, clock: SteadyClock | None = None, *, lease_s: float = LEASE_S) -> None:
        self.database = database
        self.clock = clock or SteadyClock()
        self._lease_s = lease_s
        self._worker = uuid.uuid4().hex
        self._claiming: set[asyncio.Future[list[Job]]] = set()  # claims that wait, perhaps for another program's lock

    # --- a job's life

    @override
    def submit(self, new: NewJob) -> asyncio.Future[Snapshot]:
        return self.database.write(functools.partial(self._submit, new, self.clock()))

    def _submit(self, new: NewJob, now: float, connection: sa.Connection) -> Snapshot:
        row = {
            "id": new.id,
            "app": new.app,
            "owner": new.owner,
            "priority": int(new.priority),
            "status": Status.IN_QUEUE.value,
            "call": rows.json(new.call),
            "webhook": new.webhook,
            "no_retry": new.no_retry,
            "store_io": new.store_io,
            "submitted_at": now,
            "start_by": new.start_by(now),
        }
        seq: int | None = connection.execute(sql.INSERT_JOB, row).scalar_one_or_none()
        if seq is None:
            return rows.one(connection, new.id)
        connection.execute(sql.INSERT_PAYLOAD, {"job": seq, "input": new.input})
        snapshot = Snapshot.accepted(new, seq, now)
        rows.add_log(connection, seq, snapshot.logs)
        if new.result is None:
            return snapshot
        self._end(connection, _End(seq, 0, Status.IN_QUEUE, new.result, now))
        return snapshot.finished(new.result)

    @override
    def claim(
        self, count: int, *, after_others: Collection[str] = (), without: Collection[str] = ()
    ) -> asyncio.Future[list[Job]]:
        last = list(without)
        return self._claim(sql.CLAIM, count, [[*after_others, *without], last] if after_others else [last])

    @override
    def claim_old(self, count: int, *, waited_s: float, without: Collection[str] = ()) -> asyncio.Future[list[Job]]:
        return self._claim(sql.CLAIM_OLD, count, [list(without)], before=self.clock() - waited_s)

    def _claim(
        self, which: sa.Executable, count: int, turns: list[list[str]], **values: float
    ) -> asyncio.Future[list[Job]]:
        """Claim up to `count` jobs. `turns`: the owners who are passed over at first, then, if there is room left."""
        now = self.clock()

        def operation(connection: sa.Connection) -> list[Job]:
            claim = {"by": self._worker, "until": now + self._lease_s, "now": now, **values}
            claimed: list[sa.Row[*tuple[Any, ...]]] = []
            for passed_over in turns:
                left = {"count": count - len(claimed), "passed_over": passed_over}
                claimed += connection.execute(which, claim | left).all()
            if not claimed:
                return []
            inputs = dict(connection.execute(sql.INPUTS, {"seqs": [row.seq for row in claimed]}).all())
            jobs = [rows.job_of(row, inputs.get(row.seq), now) for row in claimed]
            return sorted(jobs, key=lambda job: (job.priority, job.seq))

        claim = self.database.write(operation)
        self._claiming.add(claim)
        claim.add_done_callback(self._claiming.discard)
        return claim

    @override
    def finish(self, job: Job, result: Result, logs: Sequence[LogLine], inference_time: float) -> asyncio.Future[bool]:
        end = _End(job.seq, job.fence, Status.IN_PROGRESS, result, self.clock(), logs, inference_time, self._worker)
        return self.database.write(lambda connection: self._end(connection, end))

    @override
    def cancel(self, request_id: str, logs: Sequence[LogLine]) -> asyncio.Future[Outcome]:
        now = self.clock()

        def operation(connection: sa.Connection) -> Outcome:
            row = connection.execute(sql.STATE, {"request": request_id}).one_or_none()
            if row is None:
                return Outcome.NOT_FOUND
            if row.status == Status.COMPLETED.value:
                return Outcome.ALREADY_COMPLETED
            seen = Status(row.status)
            self._end(connection, _End(row.seq, row.fence, seen, cancelled(), now, logs))
            return Outcome.REMOVED if seen is Status.IN_QUEUE else Outcome.REQUESTED

        return self.database.write(operation)

    @override
    def end_overdue(self, result: Result) -> asyncio.Future[list[str]]:
        now = self.clock()

        def operation(connection: sa.Connection) -> list[str]:
            late = connection.execute(sql.OVERDUE, {"now": now}).all()
            return [
                row.id for row in late if self._end(connection, _End(row.seq, row.fence, Status.IN_QUEUE, result, now))
            ]

        return self.database.write(operation)

    def _end(self, connection: sa.Connection, end: "_End") -> bool:
        """End a job if its status and fence are still those of `end`; return whether they were, or `end` is its end."""
        seq, fence, seen, result, now, logs, inference_time, worker = end
        values = {
            "job": seq,
            "held": fence,
            "seen": seen.value,
            "now": now,
            "took": inference_time,
            "code": result.status,
            "headers": rows.json(result.headers),
            "message": result.error,
            "kind": result.error_type,
            "by": worker,
        }
        row = connection.execute(sql.FINISH, values).one_or_none()
        if row is None:
            return connection.execute(sql.FINISHED, values).first() is not None
        with contextlib.nullcontext() if row.store_io else secure_delete(connection):
            connection.execute(sql.OUTPUT, {"seq": seq, "body": result.body})
        rows.add_log(connection, seq, logs, stored=row.lines)
        if row.webhook is not None:
            webhook = {"job": seq, "url": row.webhook, "origin": origin(row.webhook), "due_at": now}
            connection.execute(sql.INSERT_WEBHOOK, webhook)
        return True

    # --- leases

    @override
    def release(self, job: Job, *, refund: bool, delay_s: float) -> asyncio.Future[bool]:
        held = {"job": job.seq, "held": job.fence, "refund": int(refund), "after": self.clock() + delay_s}
        return self.database.write(lambda connection: connection.execute(sql.RELEASE, held).rowcount == 1)

    @override
    def heartbeat(self, running: Collection[Job]) -> asyncio.Future[Held]:
        now = self.clock()
        until = now + self._lease_s
        mine = {"by": self._worker, "seqs": [job.seq for job in running]}
        all_heard = not self._claiming  # else one that has waited for long would be taken for one that went unheard

        def operation(connection: sa.Connection) -> Held:
            # In one transaction: a clock that is set in between would end live leases.
            held: dict[str, int] = dict(connection.execute(sql.HEARTBEAT, mine | {"until": until}).all())
            unheard = mine | {"before": until - GRACE_S}
            unknown = connection.execute(sql.RELEASE_UNKNOWN, unheard).scalars() if all_heard else ()
            return Held(held, [*unknown, *connection.execute(sql.RELEASE_LAPSED, {"now": now}).scalars()])

        return self.database.write(operation)

    def move_deadlines(self, seconds: float) -> asyncio.Future[None]:
        """Move every time that something waits for: start timeouts, leases, retries of jobs and webhooks."""

        def operation(connection: sa.Connection) -> None:
            for statement in (sql.MOVE_WAITING, sql.MOVE_RUNNING, sql.MOVE_WEBHOOKS):
                connection.execute(statement, {"seconds": seconds})

        return self.database.write(operation)

    async def recover(self) -> list[Snapshot]:
        """Take the database over from the last server: jobs that were running wait again, at their old places.

        Return all unfinished jobs in the order in which they will be claimed.
        """

        def query(connection: sa.Connection) -> list[Snapshot]:
            logs: dict[int, tuple[LogLine, ...]] = {}
            for job, *line in connection.execute(sql.WAITING_LOGS):
                logs[job] = (*logs.get(job, ()), LogLine(*line))
            return [rows.snapshot_of(row, logs.get(row.seq, ())) for row in connection.execute(sql.WAITING)]

        await self.database.write(lambda connection: connection.execute(sql.RELEASE_ALL).rowcount)
        return await self.database.read(query)

    # --- reading

    @override
    async def load(self, request_id: str) -> Snapshot | None:
        return await self.database.read(lambda connection: rows.load(connection, request_id))

    @override
    async def result(self, request_id: str) -> Result | None:
        def query(connection: sa.Connection) -> Result | None:
            row = connection.execute(sql.RESULT, {"request": request_id}).one_or_none()
            if row is None:
                return None
            headers = msgspec.json.decode(row.result_headers, type=dict[str, str])
            return Result(row.result_status, row.output, headers, row.error, row.error_type)

        return await self.database.read(query)

    # --- letting go

    @override
    def expire(self, older_s: float, count: int, owner: str | None = None) -> asyncio.Future[list[str]]:
        which = {"before": self.clock() - older_s, "count": count}

        def operation(connection: sa.Connection) -> list[str]:
            if owner is None:
                old = connection.execute(sql.OLD_RESULTS, which).all()
            else:
                old = connection.execute(sql.OLD_RESULTS_OF, which | {"owned_by": owner}).all()
            return rows.leave_tombstones(connection, old)

        return self.database.write(operation)

    @override
    def wipe(self, request_id: str) -> asyncio.Future[list[str]]:
        return self.database.write(lambda connection: rows.wipe(connection, sql.ENDED_RESULT, request_id))

    @override
    def wipe_private(self, request_id: str) -> asyncio.Future[list[str]]:
        return self.database.write(lambda connection: rows.wipe(connection, sql.PRIVATE_RESULT, request_id))

    @override
    def delete_tombstones(self, older_s: float, count: int) -> asyncio.Future[None]:
        which = {"before": self.clock() - older_s, "count": count}

        def operation(connection: sa.Connection) -> None:
            old = connection.execute(sql.OLD_TOMBSTONES, which).all()
            connection.execute(sql.DELETE_JOBS, {"seqs": [row.seq for row in old]})

        return self.database.write(operation)

    @override
    async def used_bytes(self) -> int:
        return await self.database.used_bytes()

    @override
    async def input_bytes(self) -> Mapping[str, int]:
        return await self._bytes_by_owner(sql.INPUT_BYTES)

    @override
    async def result_bytes(self) -> Mapping[str, int]:
        return await self._bytes_by_owner(sql.RESULT_BYTES)

    async def _bytes_by_owner(self, query: sa.Select[Any]) -> Mapping[str, int]:
        sizes = await self.database.read(lambda connection: connection.execute(query).all())
        return {owner: size or 0 for owner, size in sizes}

    @override
    async def tidy(self, *, wiped: bool) -> None:
        await self.database.give_back_pages(FREE_PAGES_AT_ONCE)
        if wiped:
            await self.database.empty_log()

    # --- the end

    @override
    def hurry(self) -> None:
        self.database.hurry()

    @override
    async def close(self) -> None:
        await self.database.close()

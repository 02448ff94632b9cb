"""Durable jobs: a small set of operations, each a transaction of its own and resolved once it is on disk.

A job, its events and its webhook change in one transaction. A worker may publish a result only under the job's fence,
the number of claims so far: another claim since then has made it void. Every statement is SQLAlchemy Core and compiles
for SQLite and PostgreSQL.
"""

import asyncio
import contextlib
import functools
import urllib.parse
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from pipelines.messages import Priority
from server.jobs import schema as sql
from server.jobs.database import Database, secure_delete
from server.jobs.job import Job, LogLine, NewJob, Outcome, Result, Snapshot, Status, cancelled


class _End(NamedTuple):
    """A job's end: the job, the fence and status that its finisher saw, the result, and the log if it is known."""

    seq: int
    fence: int
    seen: Status
    result: Result
    now: float
    logs: Sequence[LogLine] = ()
    inference_time: float = 0.0


class JobStore:
    """The jobs of one database. Operations are called from the event loop.

    Writing operations return futures, and are carried out even if the caller no longer waits.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # --- a job's life

    def submit(self, new: NewJob, now: float) -> asyncio.Future[Snapshot]:
        """Store a new job. One that has a result already is COMPLETED, and its webhook due at once."""
        return self.database.write(functools.partial(self._submit, new, now))

    def _submit(self, new: NewJob, now: float, connection: sa.Connection) -> Snapshot:
        row = {
            "id": new.id,
            "app": new.app,
            "owner": new.owner,
            "priority": int(new.priority),
            "status": Status.IN_QUEUE.value,
            "call": _json(new.call),
            "webhook": new.webhook,
            "no_retry": new.no_retry,
            "store_io": new.store_io,
            "submitted_at": now,
            "start_by": new.start_by(now),
        }
        seq: int = connection.execute(sql.INSERT_JOB, row).scalar_one()
        connection.execute(sql.INSERT_PAYLOAD, {"job": seq, "input": new.input})
        snapshot = Snapshot.accepted(new, seq, now)
        _log(connection, seq, snapshot.logs)
        if new.result is None:
            return snapshot
        self._end(connection, _End(seq, 0, Status.IN_QUEUE, new.result, now))
        return snapshot.finished(new.result)

    def claim(
        self,
        worker: str,
        count: int,
        lease_s: float,
        now: float,
        *,
        after_others: Collection[str] = (),
        without: Collection[str] = (),
    ) -> asyncio.Future[list[Job]]:
        """Claim up to `count` waiting jobs for `lease_s` seconds, by priority, then in order of acceptance.

        Jobs of the owners in `after_others` are claimed only if there are no others, and those of the owners in
        `without` not at all.
        """

        def operation(connection: sa.Connection) -> list[Job]:
            claim = {"by": worker, "until": now + lease_s, "now": now}
            rows: list[sa.Row[*tuple[Any, ...]]] = []
            last = list(without)
            for passed_over in [[*after_others, *without], last] if after_others else [last]:
                left = {"count": count - len(rows), "passed_over": passed_over}
                rows += connection.execute(sql.CLAIM, claim | left).all()
            if not rows:
                return []
            inputs = dict(connection.execute(sql.INPUTS, {"seqs": [row.seq for row in rows]}).all())
            jobs = [_job(row, inputs.get(row.seq)) for row in rows]
            return sorted(jobs, key=lambda job: (job.priority, job.seq))

        return self.database.write(operation)

    def finish(
        self, job: Job, result: Result, logs: Sequence[LogLine], inference_time: float, now: float
    ) -> asyncio.Future[bool]:
        """Publish a worker's result. False if the job is no longer that worker's: then nothing was changed."""
        end = _End(job.seq, job.fence, Status.IN_PROGRESS, result, now, logs, inference_time)
        return self.database.write(lambda connection: self._end(connection, end))

    def finish_waiting(self, request_id: str, result: Result, now: float) -> asyncio.Future[bool]:
        """End a waiting job. False if it runs or has ended: then nothing was changed."""

        def operation(connection: sa.Connection) -> bool:
            row = connection.execute(sql.STATE, {"request": request_id}).one_or_none()
            if row is None or row.status != Status.IN_QUEUE.value:
                return False
            return self._end(connection, _End(row.seq, row.fence, Status.IN_QUEUE, result, now))

        return self.database.write(operation)

    def cancel(self, request_id: str, logs: Sequence[LogLine], now: float) -> asyncio.Future[Outcome]:
        """End a job at its owner's request. Once this has resolved, no worker can publish a result for it."""

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

    def _end(self, connection: sa.Connection, end: "_End") -> bool:
        """End a job if its status and fence are still those of `end`; return whether they were."""
        seq, fence, seen, result, now, logs, inference_time = end
        values = {
            "job": seq,
            "held": fence,
            "seen": seen.value,
            "now": now,
            "took": inference_time,
            "code": result.status,
            "headers": _json(result.headers),
            "message": result.error,
            "kind": result.error_type,
        }
        row = connection.execute(sql.FINISH, values).one_or_none()
        if row is None:
            return False
        with contextlib.nullcontext() if row.store_io else secure_delete(connection):
            connection.execute(sql.OUTPUT, {"seq": seq, "body": result.body})
        _log(connection, seq, logs, stored=row.lines)
        if row.webhook is not None:
            webhook = {"job": seq, "url": row.webhook, "origin": _origin(row.webhook), "due_at": now}
            connection.execute(sql.INSERT_WEBHOOK, webhook)
        return True

    # --- leases

    def release(self, job: Job, *, refund: bool, after: float) -> asyncio.Future[bool]:
        """Put a job back at its old place, not to be claimed before `after`. With `refund` the try does not count."""

        def operation(connection: sa.Connection) -> bool:
            held = {"job": job.seq, "held": job.fence, "refund": int(refund), "after": after}
            return connection.execute(sql.RELEASE, held).rowcount == 1

        return self.database.write(operation)

    def heartbeat(self, worker: str, lease_s: float, now: float) -> asyncio.Future[tuple[dict[str, int], list[str]]]:
        """Renew the leases of all jobs of `worker`, then put jobs whose lease has run out back into the queue.

        Return the worker's jobs, request id → fence, and the request ids of the others. In this order, so that a server
        that was frozen keeps its jobs, and in one transaction: a clock that is set in between would end live leases.
        """

        def operation(connection: sa.Connection) -> tuple[dict[str, int], list[str]]:
            connection.execute(sql.HEARTBEAT, {"by": worker, "until": now + lease_s})
            held = dict(connection.execute(sql.HELD, {"by": worker}).all())
            return held, list(connection.execute(sql.RELEASE_LAPSED, {"now": now}).scalars())

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
            return [_snapshot(row, logs.get(row.seq, ())) for row in connection.execute(sql.WAITING)]

        await self.database.write(lambda connection: connection.execute(sql.RELEASE_ALL).rowcount)
        return await self.database.read(query)

    # --- reading

    async def load(self, request_id: str) -> Snapshot | None:
        """Return the job's snapshot with its log; None if there is no such job."""

        def query(connection: sa.Connection) -> Snapshot | None:
            row = connection.execute(sql.ONE, {"request": request_id}).one_or_none()
            if row is None:
                return None
            return _snapshot(row, tuple(LogLine(*line) for line in connection.execute(sql.LOGS, {"seq": row.seq})))

        return await self.database.read(query)

    async def result(self, request_id: str) -> Result | None:
        """Return the result; None before the job's end, after its expiry and for unknown ids."""

        def query(connection: sa.Connection) -> Result | None:
            row = connection.execute(sql.RESULT, {"request": request_id}).one_or_none()
            if row is None:
                return None
            headers = msgspec.json.decode(row.result_headers, type=dict[str, str])
            return Result(row.result_status, row.output, headers, row.error, row.error_type)

        return await self.database.read(query)


def _log(connection: sa.Connection, seq: int, logs: Sequence[LogLine], *, stored: int = 0) -> None:
    """Store a job's log, of which the first `stored` lines are in the database already."""
    lines = [
        {"job": seq, "line": number, "at": line.at, "level": line.level, "message": line.message}
        for number, line in enumerate(logs[stored:], stored)
    ]
    if lines:
        connection.execute(sql.INSERT_EVENTS, lines)


def _job(row: sa.Row[*tuple[Any, ...]], body: bytes | None) -> Job:
    try:
        call = msgspec.json.decode(row.call, type=dict[str, Any])
    except ValueError:
        call, body = {}, None
    return Job(
        seq=row.seq,
        id=row.id,
        app=row.app,
        owner=row.owner,
        priority=Priority(row.priority),
        input=body or b"",
        call=call,
        damaged=body is None,
        attempt=row.attempts,
        fence=row.fence,
        no_retry=row.no_retry,
        start_by=row.start_by,
    )


def _snapshot(row: sa.Row[*tuple[Any, ...]], logs: tuple[LogLine, ...] = ()) -> Snapshot:
    columns = row._asdict()
    columns |= {"status": Status(row.status), "priority": Priority(row.priority), "logs": logs}
    return Snapshot(**columns)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _origin(url: str) -> str:
    """Return scheme, host and port: a receiver that hangs delays only deliveries to its own origin."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()

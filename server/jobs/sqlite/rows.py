"""What several operations do with rows of SQLite's tables."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from pipelines.messages import Priority
from server.jobs.job import Job, LogLine, Snapshot, Status
from server.jobs.sqlite import statements as sql
from server.jobs.sqlite.database import secure_delete


def add_log(connection: sa.Connection, seq: int, logs: Sequence[LogLine], *, stored: int = 0) -> None:
    """Store a job's log, of which the first `stored` lines are in the database already."""
    lines = [
        {"job": seq, "line": number, "at": line.at, "level": line.level, "message": line.message}
        for number, line in enumerate(logs[stored:], stored)
    ]
    if lines:
        connection.execute(sql.INSERT_EVENTS, lines)


def load(connection: sa.Connection, request_id: str) -> Snapshot | None:
    """Return a job with its log; None if there is no such job."""
    row = connection.execute(sql.ONE, {"request": request_id}).one_or_none()
    if row is None:
        return None
    return snapshot_of(row, tuple(LogLine(*line) for line in connection.execute(sql.LOGS, {"seq": row.seq})))


def one(connection: sa.Connection, request_id: str) -> Snapshot:
    """Return a job that is stored, with its log."""
    found = load(connection, request_id)
    if found is None:
        raise LookupError(request_id)
    return found


def wipe(connection: sa.Connection, which: sa.Select[Any], request_id: str) -> list[str]:
    """Overwrite what is stored of a job. Return its request id, or nothing if it is not one of `which`."""
    rows = connection.execute(which, {"request": request_id}).all()
    if not rows:
        return []
    with secure_delete(connection):
        return leave_tombstones(connection, rows)


def leave_tombstones(connection: sa.Connection, rows: Sequence[sa.Row[*tuple[Any, ...]]]) -> list[str]:
    """Delete all but the tombstones of these jobs (rows of seq and id). Return their request ids."""
    which = {"seqs": [row.seq for row in rows]}
    for statement in (sql.DELETE_PAYLOADS, sql.DELETE_EVENTS, sql.LEAVE_TOMBSTONES):
        connection.execute(statement, which)
    return [row.id for row in rows]


def job_of(row: sa.Row[*tuple[Any, ...]], body: bytes | None, now: float) -> Job:
    """Return the job of a row that was claimed `now`, with its input."""
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
        start_in=None if row.start_by is None else max(0.0, row.start_by - now),
    )


def snapshot_of(row: sa.Row[*tuple[Any, ...]], logs: tuple[LogLine, ...]) -> Snapshot:
    """Return the job of a row."""
    columns = row._asdict()
    columns |= {"status": Status(row.status), "priority": Priority(row.priority), "logs": logs}
    return Snapshot(**columns)


def json(value: Any) -> str:
    """Return the value as JSON."""
    return msgspec.json.encode(value).decode()

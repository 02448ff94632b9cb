"""The statements that only read; rows as values, and values as arguments."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from pipelines.messages import Priority
from server.jobs.job import Job, LogLine, Result, Snapshot, Status
from server.jobs.postgres.connection import Row, Rows, Statement
from server.jobs.postgres.statements import IS_DONE, IS_WAITING, WAITING
from server.jobs.store import State

# Argument: id. One row, with the log as three arrays (null without lines).
LOAD: Final = Statement(
    "load",
    """
SELECT seq, id, app, owner, priority, store_io, webhook, submitted_at, start_by, status, inference_time, result_status,
    error, error_type, expired, at, level, message
FROM jobs LEFT JOIN LATERAL (
    SELECT array_agg(at ORDER BY line) AS at, array_agg(level ORDER BY line) AS level,
        array_agg(message ORDER BY line) AS message
    FROM events WHERE job = jobs.seq
) AS log ON true
WHERE id = $1
""",
)

RESULT: Final = Statement(
    "result",
    f"""
SELECT result_status, result_headers, error, error_type, output, output_object
FROM jobs JOIN payloads ON job = seq WHERE id = $1 AND {IS_DONE} AND NOT expired
""",
)

# Arguments: seqs, which of them are known to wait, whether to count. A row for each job that has changed, or does not
# wait: without a status if there is none. And one without seq: how many wait, by owner.
REFRESH: Final = Statement(
    "refresh",
    f"""
SELECT known.seq, status, fence, worker, (SELECT count(*) FROM events WHERE job = known.seq) AS lines, inference_time,
    result_status, error, error_type, expired, NULL::text[] AS owners, NULL::bigint[] AS waiting
FROM unnest($1::bigint[], $2::boolean[]) AS known (seq, waits) LEFT JOIN LATERAL (
    SELECT * FROM jobs WHERE jobs.seq = known.seq OFFSET 0
) AS job ON true
WHERE (waits AND {IS_WAITING}) IS NOT TRUE
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, array_agg(owner), array_agg(waiting)
FROM (SELECT owner, count(*) AS waiting FROM jobs WHERE {WAITING} AND $3::boolean GROUP BY owner) AS by_owner
""",
)

# Argument: seqs. Numbers the queue up to the last of them. `IS TRUE`: they are hashed, and not gone through for each.
PLACES: Final = Statement(
    "places",
    f"""
WITH last AS MATERIALIZED (
    SELECT priority, seq FROM jobs WHERE seq = ANY ($1::bigint[]) AND {IS_WAITING}
    ORDER BY priority DESC, seq DESC LIMIT 1
)
SELECT seq, place FROM (
    SELECT seq, row_number() OVER (ORDER BY priority, seq) - 1 AS place FROM jobs
    WHERE {WAITING} AND (priority, seq) <= (SELECT priority, seq FROM last)
) AS queue WHERE (seq IN (SELECT unnest($1::bigint[]))) IS TRUE
""",
)

# Arguments: id, number of the first line.
LINES: Final = Statement(
    "lines",
    """
SELECT at, level, message FROM jobs JOIN events ON job = seq WHERE id = $1 AND line >= $2 ORDER BY line
""",
)

# --- values


def seqs_of(known: Collection[Snapshot]) -> tuple[list[int], list[bool]]:
    """Return these jobs' numbers, and which of them wait."""
    return [snapshot.seq for snapshot in known], [snapshot.status is Status.IN_QUEUE for snapshot in known]


def refreshed(rows: Rows, known: Collection[Snapshot]) -> tuple[list[State], list[str], dict[str, int]]:
    """Return the values of `REFRESH`: states of jobs, ids of those that are not stored; who waits, if counted."""
    ids = {snapshot.seq: snapshot.id for snapshot in known}
    jobs = [row for row in rows if row[0] is not None]
    states = [State(ids[row[0]], Status(row[1]), *row[2:10]) for row in jobs if row[1] is not None]
    gone = [ids[row[0]] for row in jobs if row[1] is None]
    ((owners, waiting),) = [row[10:] for row in rows if row[0] is None]
    return states, gone, dict(zip(owners or (), waiting or (), strict=True))


def job_of(row: Row) -> Job:
    """Return a claimed job; without its input, where that is an object."""
    data = row["input"]
    try:
        call = msgspec.json.decode(row["call"], type=dict[str, Any])
    except ValueError:
        call, data = {}, None
    start_in = row["start_in"]
    return Job(
        seq=row["seq"],
        id=row["id"],
        app=row["app"],
        owner=row["owner"],
        priority=Priority(row["priority"]),
        input=data or b"",
        call=call,
        damaged=data is None and row["input_object"] is None,
        attempt=row["attempts"],
        fence=row["fence"],
        no_retry=row["no_retry"],
        store_io=row["store_io"],
        start_in=None if start_in is None else max(0.0, start_in),
    )


def snapshot_of(row: Row) -> Snapshot:
    """Return what `LOAD` has found."""
    columns = dict(row)
    lines = zip(*(columns.pop(name) or () for name in ("at", "level", "message")), strict=True)
    columns |= {"status": Status(row["status"]), "priority": Priority(row["priority"])}
    return Snapshot(**columns, logs=tuple(LogLine(*line) for line in lines))


def described(result: Result) -> tuple[int, str, str | None, str | None]:
    """Return all of a result but its body."""
    error = None if result.error is None else text(result.error)
    return result.status, json(result.headers), error, result.error_type


def arrays(logs: Sequence[LogLine]) -> tuple[list[float], list[str], list[str]]:
    """Return times, levels and texts of these lines."""
    return [line.at for line in logs], [line.level for line in logs], [text(line.message) for line in logs]


def json(value: Any) -> str:
    """Return a value as JSON."""
    return msgspec.json.encode(value).decode()


def text(value: str) -> str:
    """Return a text that PostgreSQL can store: it has no character of number 0, and no halves of surrogate pairs."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()

"""All jobs of a SQLite database, to and from another database."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from server.jobs.moving.moved import AT_ONCE, BYTES_AT_ONCE, COLUMNS, Count, Due, Line, Moved, at_rest
from server.jobs.schema import done, events, jobs, outbox, payloads
from server.jobs.sqlite.database import Database

_SIZE = sa.func.coalesce(sa.func.length(payloads.c.input), 0) + sa.func.coalesce(sa.func.length(payloads.c.output), 0)
_NEXT = (
    sa.select(jobs.c.seq, _SIZE)
    .outerjoin(payloads, payloads.c.job == jobs.c.seq)
    .where(jobs.c.seq > sa.bindparam("after"))
    .order_by(jobs.c.seq)
    .limit(AT_ONCE)
)
_SEQS: sa.BindParameter[Any] = sa.bindparam("seqs", expanding=True)
_JOBS = (
    sa.select(jobs, payloads.c.input, payloads.c.output)
    .outerjoin(payloads, payloads.c.job == jobs.c.seq)
    .where(jobs.c.seq.in_(_SEQS))
    .order_by(jobs.c.seq)
)
_LINES = sa.select(events).where(events.c.job.in_(_SEQS)).order_by(events.c.job, events.c.line)
_WEBHOOKS = sa.select(outbox).where(outbox.c.job.in_(_SEQS)).order_by(outbox.c.id)


_unfinished = sa.select(sa.func.count()).select_from(jobs).where(~done)


async def counted(database: Database) -> Count:
    """Return how much there is."""

    def query(connection: sa.Connection) -> Count:
        all_of = [sa.select(sa.func.count()).select_from(each) for each in (jobs, events, outbox)]
        all_jobs, lines, webhooks = (connection.execute(each).scalar_one() for each in all_of)
        return Count(all_jobs, connection.execute(_unfinished).scalar_one(), lines, webhooks)

    return await database.read(query)


async def after(database: Database, seq: int) -> list[Moved]:
    """Return the next jobs behind this place, in order; none at the end."""

    def query(connection: sa.Connection) -> list[Moved]:
        seqs: list[int] = []
        size = 0
        for found, more in connection.execute(_NEXT, {"after": seq}):
            if seqs and size + more > BYTES_AT_ONCE:
                break
            seqs.append(found)
            size += more
        return _whole(connection, seqs)

    return await database.read(query)


def _whole(connection: sa.Connection, seqs: Sequence[int]) -> list[Moved]:
    which = {"seqs": seqs}
    lines: dict[int, list[Line]] = defaultdict(list)
    for row in connection.execute(_LINES, which):
        lines[row.job].append(Line(row.line, row.at, row.level, row.message))
    webhooks: dict[int, list[Due]] = defaultdict(list)
    for row in connection.execute(_WEBHOOKS, which):
        webhooks[row.job].append(Due(row.url, row.origin, row.attempts, row.due_at))
    return [
        Moved(
            row["seq"],
            at_rest({name: row[name] for name in COLUMNS}),
            row["input"],
            row["output"],
            tuple(lines[row["seq"]]),
            tuple(webhooks[row["seq"]]),
        )
        for row in connection.execute(_JOBS, which).mappings()
    ]


async def add(database: Database, moved: Sequence[Moved]) -> None:
    """Store these jobs behind all others, in their order."""

    def operation(connection: sa.Connection) -> None:
        for job in moved:
            made = connection.execute(sa.insert(jobs).values(at_rest(job.columns)).returning(jobs.c.seq)).scalar_one()
            if not job.columns["expired"]:
                connection.execute(sa.insert(payloads).values(job=made, input=job.input, output=job.output))
            _add_all(connection, events, [_line(made, line) for line in job.log])
            _add_all(connection, outbox, [{"job": made, **webhook._asdict()} for webhook in job.webhooks])

    await database.write(operation)


def _line(job: int, line: Line) -> dict[str, Any]:
    return {"job": job, "line": line.number, "at": line.at, "level": line.level, "message": line.message}


def _add_all(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.execute(sa.insert(table), rows)

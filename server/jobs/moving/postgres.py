"""All jobs of a PostgreSQL, to and from another database.

Jobs are stored in batches, each by one statement: all of a job is there, or nothing. A job whose id is there already is
left as it is, so that a move which was interrupted is made again from its beginning.
"""

from collections.abc import Sequence
from typing import Any, Final

from server.jobs.errors import DatabaseUnusable
from server.jobs.moving.moved import AT_ONCE, BYTES_AT_ONCE, COLUMNS, Count, Due, Line, Moved, at_rest
from server.jobs.postgres.connection import Row, Statement
from server.jobs.postgres.payloads import Payloads
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.reading import json, text
from server.jobs.postgres.statements import DONE, NOW

_NAMES: Final = ", ".join(COLUMNS)

# Argument: ids. A row for each that is there.
_THERE: Final = Statement("move", f"SELECT id, submitted_at, owner, {DONE} FROM jobs WHERE id = ANY ($1::text[])")

# Arguments: jobs, lines, webhooks, each as a JSON array; ids of jobs with payloads, inputs and their objects, outputs
# and theirs.
_ADD: Final = Statement(
    "move",
    f"""
WITH made AS (
    INSERT INTO jobs ({_NAMES}, bytes)
    SELECT {_NAMES}, bytes FROM jsonb_populate_recordset(NULL::jobs, $1::jsonb) ORDER BY seq
    ON CONFLICT (id) DO NOTHING RETURNING seq, id
), log AS (
    INSERT INTO events (job, line, at, level, message)
    SELECT seq, line, at, level, message
    FROM jsonb_to_recordset($2::jsonb) AS given (id text, line integer, at float8, level text, message text)
    JOIN made USING (id)
), webhook AS (
    INSERT INTO outbox (job, url, origin, attempts, due_at, leased_until)
    SELECT seq, url, origin, attempts, due_at, 0
    FROM jsonb_to_recordset($3::jsonb)
        AS given (id text, number integer, url text, origin text, attempts integer, due_at float8)
    JOIN made USING (id) ORDER BY number
), payload AS (
    INSERT INTO payloads (job, input, input_object, output, output_object)
    SELECT seq, input, input_object, output, output_object
    FROM unnest($4::text[], $5::bytea[], $6::text[], $7::bytea[], $8::text[])
        AS given (id, input, input_object, output, output_object)
    JOIN made USING (id)
), named AS (DELETE FROM objects WHERE name = ANY ($6::text[] || $8::text[]))
SELECT id FROM made
""",
)

# Argument: ids of jobs that have ended where they come from, after an earlier move was interrupted.
_OUTRUN: Final = Statement(
    "move",
    f"""
WITH gone AS (DELETE FROM jobs WHERE id = ANY ($1::text[]) RETURNING seq),
log AS (DELETE FROM events USING gone WHERE job = seq),
payload AS (DELETE FROM payloads USING gone WHERE job = seq RETURNING input_object)
INSERT INTO objects (name, due_at) SELECT input_object, {NOW} FROM payload WHERE input_object IS NOT NULL
ON CONFLICT DO NOTHING
""",
)

# Argument: ids; null for all jobs.
_COUNT: Final = Statement(
    "move",
    f"""
WITH these AS (SELECT seq, {DONE} AS done FROM jobs WHERE $1::text[] IS NULL OR id = ANY ($1::text[]))
SELECT count(*), count(*) FILTER (WHERE NOT done),
    (SELECT count(*) FROM events JOIN these ON job = seq), (SELECT count(*) FROM outbox JOIN these ON job = seq)
FROM these
""",
)

# Arguments: seq, how many, bytes.
_AFTER: Final = Statement(
    "move",
    f"""
WITH next AS (SELECT seq FROM jobs WHERE seq > $1 ORDER BY seq LIMIT $2),
sized AS (SELECT seq, sum(bytes) OVER (ORDER BY seq) - bytes AS before FROM jobs JOIN next USING (seq))
SELECT seq, {_NAMES}, input, input_object, output, output_object
FROM sized JOIN jobs USING (seq) LEFT JOIN payloads ON job = seq WHERE before < $3 ORDER BY seq
""",
)
_LINES: Final = Statement("move", "SELECT * FROM events WHERE job = ANY ($1::bigint[]) ORDER BY job, line")
_WEBHOOKS: Final = Statement("move", "SELECT * FROM outbox WHERE job = ANY ($1::bigint[]) ORDER BY id")


async def counted(pool: Pool, ids: Sequence[str] | None = None) -> Count:
    """Return how much there is, of these jobs or all."""
    (row,) = await pool.fetch(_COUNT, ids)
    return Count(*row)


async def add(pool: Pool, payloads: Payloads, moved: Sequence[Moved]) -> None:
    """Store these jobs in their order, but for those that are there. Raises `DatabaseUnusable` where others have their
    ids."""
    by_id = {job.id: job for job in moved}
    there = {row[0]: row for row in await pool.fetch(_THERE, list(by_id))}
    for request_id, (_, submitted_at, owner, _) in there.items():
        columns = by_id[request_id].columns
        if (submitted_at, owner) != (columns["submitted_at"], columns["owner"]):
            raise DatabaseUnusable(
                f"database: it has another job with the id {request_id}."
                " Hint: name an empty database, or another schema: ?search_path=fourstep"
            )
    # The server went on with the data folder after a move that was interrupted.
    outrun = [row[0] for row in there.values() if by_id[row[0]].ended and not row[3]]
    if outrun:
        await pool.fetch(_OUTRUN, outrun)
    new = [job for job in moved if job.id not in there or job.id in outrun]
    if new:
        await _add(pool, payloads, new)


async def _add(pool: Pool, payloads: Payloads, new: Sequence[Moved]) -> None:
    stored = []
    for job in new:
        if not job.columns["expired"]:
            put = [await _put(payloads, data, job.columns["store_io"]) for data in (job.input, job.output)]
            stored.append((job.id, *put[0], *put[1]))
    lines = [{"id": job.id, **_line(line)} for job in new for line in job.log]
    webhooks = [
        {"id": job.id, "number": number, **webhook._asdict()}
        for job in new
        for number, webhook in enumerate(job.webhooks)
    ]
    columns = [_cleaned(job.columns) | {"seq": job.seq, "bytes": job.bytes} for job in new]
    arrays = [list(column) for column in zip(*stored, strict=True)] or [[] for _ in range(5)]
    await pool.fetch(_ADD, json(columns), json(lines), json(webhooks), *arrays)


async def _put(payloads: Payloads, data: bytes | None, store_io: bool) -> tuple[bytes | None, str | None]:  # noqa: FBT001
    return (None, None) if data is None else await payloads.put(data, store_io=store_io)


def _line(line: Line) -> dict[str, Any]:
    return {"line": line.number, "at": line.at, "level": line.level, "message": text(line.message)}


def _cleaned(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: text(value) if isinstance(value, str) else value for name, value in columns.items()}


async def after(pool: Pool, payloads: Payloads, seq: int) -> list[Moved]:
    """Return the next jobs behind this place, in order; none at the end."""
    rows = await pool.fetch(_AFTER, seq, AT_ONCE, BYTES_AT_ONCE)
    seqs = [row["seq"] for row in rows]
    lines = await pool.fetch(_LINES, seqs)
    webhooks = await pool.fetch(_WEBHOOKS, seqs)
    return [
        Moved(
            row["seq"],
            at_rest({name: row[name] for name in COLUMNS}),
            await payloads.get(row["input"], row["input_object"]),
            await payloads.get(row["output"], row["output_object"]),
            tuple(Line(each["line"], each["at"], each["level"], each["message"]) for each in _of(row, lines)),
            tuple(Due(each["url"], each["origin"], each["attempts"], each["due_at"]) for each in _of(row, webhooks)),
        )
        for row in rows
    ]


def _of(job: Row, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["job"] == job["seq"]]

"""The statements of a job's life in PostgreSQL: one for each operation, which changes all that belongs together.

Only the database's clock counts. Rows that an operation picks itself are locked by `FOR UPDATE SKIP LOCKED` in a
`MATERIALIZED` query: written as `seq IN (SELECT … LIMIT n)`, that query may run again, and pick more than n.
"""

from typing import Final

from server.jobs.postgres.connection import Statement

NOW: Final = "extract(epoch FROM now())::float8"
WAITING: Final = "status = 'IN_QUEUE'"
RUNNING: Final = "status = 'IN_PROGRESS'"
DONE: Final = "status = 'COMPLETED'"
# The same of rows that are picked by their keys. Written as above it would allow another plan: through all rows of that
# status, which looks cheap to PostgreSQL when it makes its plans, before there is any.
IS_WAITING: Final = "status || '' = 'IN_QUEUE'"
IS_RUNNING: Final = "status || '' = 'IN_PROGRESS'"
IS_DONE: Final = "status || '' = 'COMPLETED'"
# Whether no other server is at the chore of this name; none is until the statement has ended.
ALONE: Final = "pg_try_advisory_xact_lock(hashtextextended('%s', 0))"

# Scheme, host and port: a receiver that hangs delays only deliveries to its own origin.
_ORIGIN: Final = r"lower(regexp_replace(webhook, '^([^:/?#]+)://(?:[^/?#]*@)?([^/?#]*).*$', '\1://\2'))"
_WEBHOOK: Final = f"""
    INSERT INTO outbox (job, url, origin, attempts, due_at, leased_until)
    SELECT seq, webhook, {_ORIGIN}, 0, {NOW}, 0 FROM ended WHERE webhook IS NOT NULL
"""


def _log(job: str, first: str, arrays: str) -> str:
    """Return the SQL that stores lines of a job's log, but for those that are there.

    `first`: number of the first line; `arrays`: times, levels, texts.
    """
    return f"""
    INSERT INTO events (job, line, at, level, message)
    SELECT {job}.seq, {first} + given.number - 1, given.at, given.level, given.message
    FROM {job}, unnest({arrays}) WITH ORDINALITY AS given (at, level, message, number)
    ON CONFLICT DO NOTHING
"""


# --- submit

_COLUMNS: Final = """
    id, app, owner, priority, call, webhook, no_retry, store_io, submitted_at, start_by, not_before, attempts, fence,
    bytes, expired, inference_time, status
"""
_VALUES: Final = f"$1, $2, $3, $4, $5, $6, $7, $8, {NOW}, {NOW} + $9::float8, 0, 0, 0, $11, false, 0"
_WARNING: Final = """
    INSERT INTO events (job, line, at, level, message)
    SELECT seq, 0, submitted_at, 'WARN', $13::text FROM job WHERE $13::text <> ''
"""
_NAMED: Final = "DELETE FROM objects USING job WHERE name = $12"  # a row names it from now on

_JOB: Final = f"""
WITH job AS (
    INSERT INTO jobs ({_COLUMNS}) VALUES ({_VALUES}, 'IN_QUEUE')
    ON CONFLICT (id) DO NOTHING RETURNING seq, submitted_at, start_by
)"""
# Arguments: id, app, owner, priority, call, webhook, no_retry, store_io, start timeout, input, its size. No row: there
# is a job of this id.
SUBMIT: Final = Statement(
    "submit",
    f"""{_JOB}, payload AS (INSERT INTO payloads (job, input) SELECT seq, $10::bytea FROM job)
SELECT seq, submitted_at, start_by FROM job
""",
)
# The same, and: the input's object, warning.
SUBMIT_MORE: Final = Statement(
    "submit",
    f"""{_JOB}, payload AS (
    INSERT INTO payloads (job, input, input_object) SELECT seq, $10::bytea, $12::text FROM job
), warning AS ({_WARNING}), named AS ({_NAMED})
SELECT seq, submitted_at, start_by FROM job
""",
)
# The same with the output, and: result status, headers, error, error type.
SUBMIT_ENDED: Final = Statement(
    "submit",
    f"""
WITH job AS (
    INSERT INTO jobs ({_COLUMNS}, finished_at, result_status, result_headers, error, error_type)
    VALUES ({_VALUES}, 'COMPLETED', {NOW}, $14, $15, $16, $17)
    ON CONFLICT (id) DO NOTHING RETURNING seq, submitted_at, start_by, webhook
), ended AS (SELECT seq, webhook FROM job), payload AS (
    INSERT INTO payloads (job, output, output_object) SELECT seq, $10::bytea, $12::text FROM job
), warning AS ({_WARNING}), named AS ({_NAMED}), webhook AS ({_WEBHOOK})
SELECT seq, submitted_at, start_by FROM job
""",
)

# --- claim

_PICKED: Final = f"SELECT seq FROM jobs WHERE {WAITING} AND not_before <= {NOW} AND owner <> ALL ($4::text[])"
_CLAIMED: Final = f"""
UPDATE jobs SET status = 'IN_PROGRESS', attempts = attempts + 1, fence = fence + 1, worker = $2,
    lease_until = {NOW} + $3::float8
FROM picked LEFT JOIN payloads ON payloads.job = picked.seq WHERE jobs.seq = picked.seq
RETURNING jobs.seq, id, app, owner, priority, call, attempts, fence, no_retry, store_io, start_by - {NOW} AS start_in,
    input, input_object
"""
# Argument: owners passed over. A row: there may be something to claim. Costs a third of a claim that finds nothing.
LOOK: Final = Statement("claim", f"SELECT FROM jobs WHERE {WAITING} AND owner <> ALL ($1::text[]) LIMIT 1")
# Arguments: how many, node, lease, owners passed over.
CLAIM: Final = Statement(
    "claim",
    f"""
WITH picked AS MATERIALIZED ({_PICKED} ORDER BY priority, seq LIMIT $1 FOR UPDATE SKIP LOCKED)
{_CLAIMED}
""",
)
# and: seconds. Those of the next ones that have waited for that long; the others, which are not locked, stay.
CLAIM_OLD: Final = Statement(
    "claim",
    f"""
WITH next AS MATERIALIZED ({_PICKED} ORDER BY priority, seq LIMIT $1), picked AS MATERIALIZED (
    SELECT seq FROM jobs WHERE seq IN (SELECT seq FROM next) AND {IS_WAITING} AND submitted_at <= {NOW} - $5::float8
    FOR UPDATE SKIP LOCKED
)
{_CLAIMED}
""",
)
# and: owners who come after all others.
CLAIM_IN_TURN: Final = Statement(
    "claim",
    f"""
WITH others AS MATERIALIZED (
    {_PICKED} AND owner <> ALL ($5::text[]) ORDER BY priority, seq LIMIT $1 FOR UPDATE SKIP LOCKED
), last AS MATERIALIZED (
    {_PICKED} AND owner = ANY ($5::text[]) ORDER BY priority, seq
    LIMIT $1 - (SELECT count(*) FROM others) FOR UPDATE SKIP LOCKED
), picked AS (SELECT seq FROM others UNION ALL SELECT seq FROM last)
{_CLAIMED}
""",
)

# --- the end

_END: Final = f"status = 'COMPLETED', lease_until = NULL, finished_at = {NOW}"
# What the object store has of the input may be deleted now.
_LET_GO: Final = f"""
    INSERT INTO objects (name, due_at) SELECT input_object, {NOW} FROM payload WHERE input_object IS NOT NULL
    ON CONFLICT DO NOTHING
"""

_FINISH: Final = f"""
WITH ended AS (
    UPDATE jobs SET {_END}, inference_time = $3, result_status = $4, result_headers = $5, error = $6, error_type = $7,
        bytes = $9
    WHERE seq = $1 AND fence = $2 AND {IS_RUNNING} RETURNING seq, webhook
), log AS ({_log("ended", "0", "$10::float8[], $11::text[], $12::text[]")}), webhook AS ({_WEBHOOK})"""
# Arguments: seq, fence, seconds, result status, headers, error, error type, output, its size; times, levels and texts
# of the log. No row: nothing was changed.
FINISH: Final = Statement(
    "finish",
    f"""{_FINISH},
payload AS (UPDATE payloads SET input = NULL, output = $8 FROM ended WHERE job = ended.seq)
SELECT seq FROM ended
""",
)
# The same, and: the output's object. For jobs of which anything is an object.
FINISH_OUTSIDE: Final = Statement(
    "finish",
    f"""{_FINISH}, payload AS (
    UPDATE payloads SET input = NULL, output = $8, output_object = $13 FROM ended WHERE job = ended.seq
    RETURNING input_object
), let_go AS ({_LET_GO}), named AS (DELETE FROM objects USING ended WHERE name = $13)
SELECT input_object FROM ended LEFT JOIN payload ON true
""",
)
# Arguments: seq, fence, node. A row: that node has ended the job under that fence, but the answer was lost.
FINISHED: Final = Statement(
    "finish", f"SELECT seq FROM jobs WHERE seq = $1 AND fence = $2 AND worker = $3 AND {IS_DONE}"
)

# Arguments: id, this cancel's own name, result status, headers, error, error type, output, its size; times, levels and
# texts of the log. The row: status and worker as they were. A cancel leaves its name, and what it saw, as the worker.
CANCEL: Final = Statement(
    "cancel",
    f"""
WITH seen AS MATERIALIZED (
    SELECT seq, status, worker FROM jobs WHERE id = $1 FOR UPDATE
), ended AS (
    UPDATE jobs SET {_END}, worker = $2 || seen.status, result_status = $3, result_headers = $4, error = $5,
        error_type = $6, bytes = $8
    FROM seen WHERE jobs.seq = seen.seq AND seen.status <> 'COMPLETED' RETURNING jobs.seq, webhook
), payload AS (
    UPDATE payloads SET input = NULL, output = $7 FROM ended WHERE job = ended.seq RETURNING input_object
), log AS ({_log("ended", "0", "$9::float8[], $10::text[], $11::text[]")}), webhook AS ({_WEBHOOK}),
let_go AS ({_LET_GO})
SELECT status, worker, (SELECT input_object FROM payload) FROM seen
""",
)

# Arguments: result status, headers, error, error type, output, its size. One server at a time does it for all.
END_OVERDUE: Final = Statement(
    "end_overdue",
    f"""
WITH picked AS MATERIALIZED (
    SELECT seq FROM jobs WHERE {WAITING} AND start_by <= {NOW} AND (SELECT {ALONE % "overdue"})
    ORDER BY start_by LIMIT 200 FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE jobs SET {_END}, worker = NULL, result_status = $1, result_headers = $2, error = $3, error_type = $4,
        bytes = $6
    FROM picked WHERE jobs.seq = picked.seq RETURNING jobs.seq, id, webhook
), payload AS (
    UPDATE payloads SET input = NULL, output = $5 FROM ended WHERE job = ended.seq RETURNING input_object
), webhook AS ({_WEBHOOK}), let_go AS ({_LET_GO})
SELECT id FROM ended
""",
)

# --- leases

_BACK: Final = "status = 'IN_QUEUE', worker = NULL, lease_until = NULL"
# Arguments: seq, fence, 1 if the try does not count, seconds.
RELEASE: Final = Statement(
    "release",
    f"""
UPDATE jobs SET {_BACK}, attempts = attempts - $3, not_before = {NOW} + $4::float8
WHERE seq = $1 AND fence = $2 AND {IS_RUNNING} RETURNING seq
""",
)

# Arguments: node, lease, seqs of what it runs, grace. A claim that this node has not heard of costs no try. After a gap
# in which no server could renew a lease, one lease passes before any lapses. Rows: id and fence of what is renewed; id
# and no fence of what waits again.
HEARTBEAT: Final = Statement(
    "heartbeat",
    f"""
WITH beat AS (
    UPDATE fleet SET beat = {NOW}, beating_since = CASE WHEN beat < {NOW} - $2::float8 / 2 THEN {NOW}
        ELSE beating_since END
    WHERE id = 1 RETURNING beating_since
), renewed AS (
    UPDATE jobs SET lease_until = {NOW} + $2::float8
    WHERE seq = ANY ($3::bigint[]) AND worker = $1 AND {IS_RUNNING} RETURNING id, fence
), lost AS MATERIALIZED (
    SELECT seq, worker = $1 AS unheard FROM jobs WHERE {RUNNING} AND (
        worker = $1 AND seq <> ALL ($3::bigint[]) AND lease_until <= {NOW} + $2::float8 - $4::float8
        OR worker <> $1 AND lease_until < {NOW} AND (SELECT beating_since FROM beat) <= {NOW} - $2::float8
    ) FOR UPDATE SKIP LOCKED
), back AS (
    UPDATE jobs SET {_BACK}, attempts = attempts - unheard::integer FROM lost WHERE jobs.seq = lost.seq RETURNING id
)
SELECT id, fence FROM renewed UNION ALL SELECT id, NULL FROM back
""",
)

# Arguments: seq, fence, number of the first line; times, levels, texts. A row: the job is still that worker's.
LOG: Final = Statement(
    "log",
    f"""
WITH job AS MATERIALIZED (
    SELECT seq FROM jobs WHERE seq = $1 AND fence = $2 AND {IS_RUNNING} FOR SHARE
), log AS ({_log("job", "$3::integer", "$4::float8[], $5::text[], $6::text[]")})
SELECT seq FROM job
""",
)

# --- webhooks

_DELIVERABLE: Final = "outbox.id <> ALL ($2::bigint[]) AND origin <> ALL ($3::text[]) AND owner <> ALL ($4::text[])"
# Arguments: node, rows, origins and owners that are busy, how many, lease. Rows in flight stay this node's.
DUE: Final = Statement(
    "due",
    f"""
WITH kept AS (
    UPDATE outbox SET leased_until = {NOW} + $6::float8 WHERE id = ANY ($2::bigint[]) AND leased_by = $1
), picked AS MATERIALIZED (
    SELECT outbox.id, jobs.id AS request_id, owner FROM outbox JOIN jobs ON seq = job
    WHERE due_at <= {NOW} AND (leased_until <= {NOW} OR leased_by = $1) AND {_DELIVERABLE}
    ORDER BY due_at, outbox.id LIMIT $5 FOR UPDATE OF outbox SKIP LOCKED
)
UPDATE outbox SET leased_until = {NOW} + $6::float8, leased_by = $1 FROM picked WHERE outbox.id = picked.id
RETURNING due_at, outbox.id, url, origin, attempts, request_id, owner
""",
)
# The same without how many and lease. Seconds until the next is due and no other's.
NEXT_DUE: Final = Statement(
    "next_due",
    f"""
SELECT greatest(due_at, CASE WHEN leased_by <> $1 THEN leased_until END) - {NOW}
FROM outbox JOIN jobs ON seq = job WHERE {_DELIVERABLE}
ORDER BY greatest(due_at, CASE WHEN leased_by <> $1 THEN leased_until END) LIMIT 1
""",
)
# Arguments: row, attempts made, seconds.
FAILED: Final = Statement(
    "failed", f"UPDATE outbox SET attempts = $2, due_at = {NOW} + $3::float8, leased_until = 0 WHERE id = $1"
)
DONE_WITH: Final = Statement("done", "DELETE FROM outbox WHERE id = $1")

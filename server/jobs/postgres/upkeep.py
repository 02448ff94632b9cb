"""The statements that let go: results by age, tombstones, objects without a row; and how much is used."""

from typing import Final

from server.jobs.postgres.connection import Statement
from server.jobs.postgres.statements import ALONE, DONE, IS_DONE, NOW, RUNNING, WAITING

_NO_WEBHOOK: Final = "NOT EXISTS (SELECT FROM outbox WHERE job = jobs.seq)"
# Deletes all but the tombstones of the jobs in `gone`. Rows: their ids, and what of them is in the object store.
_TOMBSTONES: Final = f"""
payload AS (
    DELETE FROM payloads USING gone WHERE job = gone.seq RETURNING job, array_remove(ARRAY[input_object, output_object],
        NULL) AS names
), log AS (DELETE FROM events USING gone WHERE job = gone.seq), tombstone AS (
    UPDATE jobs SET expired = true, call = '', webhook = NULL, bytes = 0 FROM gone WHERE jobs.seq = gone.seq
), let_go AS (
    INSERT INTO objects (name, due_at) SELECT unnest(names), {NOW} FROM payload ON CONFLICT DO NOTHING
)
SELECT id, names FROM gone LEFT JOIN payload ON job = seq
"""


def _letting_go(operation: str, picked: str) -> Statement:
    return Statement(operation, f"WITH gone AS MATERIALIZED ({picked}), {_TOMBSTONES}")


_OLD: Final = (
    f"SELECT seq, id FROM jobs WHERE {DONE} AND NOT expired AND finished_at <= {NOW} - $1::float8 AND {_NO_WEBHOOK}"
)
_OLDEST_FIRST: Final = "ORDER BY finished_at, seq LIMIT $2 FOR UPDATE SKIP LOCKED"
# Arguments: age, how many, owner.
EXPIRE: Final = _letting_go("expire", f"{_OLD} {_OLDEST_FIRST}")
EXPIRE_OWNED: Final = _letting_go("expire", f"{_OLD} AND owner = $3 {_OLDEST_FIRST}")
# Argument: id.
_GIVEN: Final = f"SELECT seq, id FROM jobs WHERE id = $1 AND {IS_DONE} AND NOT expired"
WIPE: Final = _letting_go("wipe", f"{_GIVEN} FOR UPDATE")
WIPE_PRIVATE: Final = _letting_go("wipe", f"{_GIVEN} AND NOT store_io AND {_NO_WEBHOOK} FOR UPDATE")

# Arguments: age, how many.
DELETE_TOMBSTONES: Final = Statement(
    "delete_tombstones",
    f"""
WITH old AS MATERIALIZED (
    SELECT seq FROM jobs WHERE {DONE} AND expired AND finished_at <= {NOW} - $1::float8 LIMIT $2 FOR UPDATE SKIP LOCKED
)
DELETE FROM jobs USING old WHERE jobs.seq = old.seq
""",
)

# --- objects that no row names

# Arguments: name, seconds until it is deleted if no row has come to name it.
PUTTING: Final = Statement(
    "putting", f"INSERT INTO objects (name, due_at) VALUES ($1, {NOW} + $2::float8) ON CONFLICT DO NOTHING"
)
# Argument: how many. They are this server's for a minute.
ORPHANS: Final = Statement(
    "orphans",
    f"""
WITH due AS MATERIALIZED (
    SELECT name FROM objects WHERE due_at <= {NOW} ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE objects SET due_at = {NOW} + 60 FROM due WHERE objects.name = due.name RETURNING objects.name
""",
)
# Argument: names.
DELETED: Final = Statement("orphans", "DELETE FROM objects WHERE name = ANY ($1::text[])")

# --- how much is used

# Argument: seconds. What was measured last, or is measured anew if that is older and no other server is at it; whether
# it is new.
USAGE: Final = Statement(
    "usage",
    f"""
WITH old AS MATERIALIZED (SELECT usage_at, usage FROM fleet WHERE id = 1), due AS MATERIALIZED (
    SELECT FROM old WHERE CASE WHEN usage_at <= {NOW} - $1::float8 THEN {ALONE % "usage"} ELSE false END
), stored AS (
    SELECT owner, bytes AS input, 0 AS output FROM jobs WHERE {WAITING} AND EXISTS (SELECT FROM due)
    UNION ALL SELECT owner, bytes, 0 FROM jobs WHERE {RUNNING} AND EXISTS (SELECT FROM due)
    UNION ALL SELECT owner, 0, bytes FROM jobs WHERE {DONE} AND NOT expired AND EXISTS (SELECT FROM due)
), owned AS (
    SELECT owner, sum(input) AS inputs, sum(output) AS results, count(*) AS jobs FROM stored GROUP BY owner
), measured AS (
    UPDATE fleet SET usage_at = {NOW}, usage = (
        SELECT coalesce(json_object_agg(owner, json_build_array(inputs, results, jobs)), '{{}}') FROM owned
    )::text
    FROM due WHERE id = 1 RETURNING usage
)
SELECT usage, true FROM measured UNION ALL SELECT usage, false FROM old WHERE NOT EXISTS (SELECT FROM due)
""",
)

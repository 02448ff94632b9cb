"""How PostgreSQL finds rows: by plans that it may make before there are any, and keeps until it knows better."""

import json
import re

import pytest

from server.jobs.postgres import reading, statements, upkeep
from server.jobs.postgres.connection import opened
from server.nodes import documents, row, usage
from tests.jobs.forms import migrated

pytestmark = pytest.mark.anyio

KEYS = {"jobs_pkey", "jobs_id_key", "payloads_pkey", "events_pkey", "objects_pkey"}
SHORT = {"nodes", "documents", "files_used"}  # a row for each server, document and owner


# 10 000 jobs that have ended, 1 000 that wait, 10 that run; and PostgreSQL knows.
FULL = (
    """
INSERT INTO jobs (id, app, owner, priority, status, call, no_retry, store_io, submitted_at, start_by, lease_until,
    finished_at, bytes, not_before, attempts, fence, inference_time, expired)
SELECT gen_random_uuid(), 'app', 'owner ' || n % 10, n % 4, status, '{}', false, true, n, n, n, n, 300, 0, 1, 1, 0.1,
    status = 'COMPLETED' AND n % 2 = 0
FROM (VALUES ('COMPLETED', 10000), ('IN_QUEUE', 1000), ('IN_PROGRESS', 10)) AS kinds (status, count),
    generate_series(1, count) AS n
""",
    "INSERT INTO payloads (job, input, output) SELECT seq, 'x', 'x' FROM jobs",
    "INSERT INTO events (job, line, at, level, message) SELECT seq, n, 0, '', 'x' FROM jobs, generate_series(0, 2) n",
    "ANALYZE",
)


@pytest.fixture(params=[(), FULL], ids=["empty", "full"])
async def connection(postgres, request):
    """A connection, as servers open them, to a database of its own."""
    database = await postgres.new_database(await migrated(postgres))
    await postgres.execute(*request.param, database=database)
    connection = await opened(postgres.url(database), timeout_s=10)
    yield connection
    await connection.close()


async def plan_of(connection, statement):
    """Return the nodes of a statement's plan, each with those below it."""
    count = max(map(int, re.findall(r"\$(\d+)", statement.text)), default=0)
    arguments = f"({', '.join(['NULL'] * count)})" if count else ""
    await connection.execute(f"PREPARE it AS {statement.text}")
    plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE it {arguments}")
    await connection.execute("DEALLOCATE it")
    return nodes(json.loads(plan)[0]["Plan"])


def nodes(plan):
    """Return a node of a plan, and all below it."""
    return [plan, *(each for below in plan.get("Plans", ()) for each in nodes(below))]


def indexes(plan):
    return {node["Index Name"] for node in plan if "Index Name" in node}


@pytest.mark.parametrize(
    "statement",
    [
        statements.FINISH,
        statements.FINISH_OUTSIDE,
        statements.FINISHED,
        statements.CANCEL,
        statements.RELEASE,
        statements.LOG,
        reading.LOAD,
        reading.RESULT,
        reading.LINES,
    ],
    ids=lambda statement: statement.operation,
)
async def test_a_job_that_is_named_is_found_by_its_key(connection, statement):
    assert indexes(await plan_of(connection, statement)) <= KEYS


@pytest.mark.parametrize(
    ("statement", "others"),
    [
        (upkeep.WIPE, {"ix_outbox_job"}),
        (upkeep.WIPE_PRIVATE, {"ix_outbox_job"}),
        (statements.CLAIM, {"jobs_waiting"}),
        (statements.CLAIM_OLD, {"jobs_waiting"}),
        (statements.HEARTBEAT, {"jobs_running", "fleet_pkey"}),
        (reading.REFRESH, {"jobs_waiting"}),
        (reading.PLACES, {"jobs_waiting"}),
        (statements.END_OVERDUE, {"jobs_start_by"}),
    ],
    ids=lambda value: getattr(value, "operation", ""),
)
async def test_the_others_are_found_by_one_index_more(connection, statement, others):
    assert indexes(await plan_of(connection, statement)) <= KEYS | others


async def test_nothing_but_short_lists_is_read_from_end_to_end(connection):
    every = [each for module in (statements, reading, upkeep, usage, row, documents) for each in vars(module).values()]
    found = [each for each in every if isinstance(each, statements.Statement)]
    read = {
        node["Relation Name"]: each.text
        for each in found
        for node in await plan_of(connection, each)
        if "Seq Scan" in node["Node Type"]
    }

    assert len(found) > 30
    assert {table: text for table, text in read.items() if table not in SHORT} == {}


async def test_the_queue_is_numbered_once_however_many_places_are_asked_for(connection):
    plan = await plan_of(connection, reading.PLACES)
    loops = [node for node in plan if node["Node Type"] == "Nested Loop"]

    assert loops == []
    assert any("hashed SubPlan" in node.get("Filter", "") for node in plan)


async def test_a_claim_walks_the_index_of_waiting_jobs(connection):
    kinds = [(node["Node Type"], node.get("Index Name")) for node in await plan_of(connection, statements.CLAIM)]

    assert ("Index Scan", "jobs_waiting") in kinds
    assert "Sort" not in dict(kinds)

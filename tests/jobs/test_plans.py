"""How PostgreSQL finds rows, by plans that it makes before there are any, and keeps for as long as the connection."""

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


@pytest.fixture
async def connection(postgres):
    """A connection, as servers open them, to an empty database."""
    database = await postgres.new_database(await migrated(postgres))
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

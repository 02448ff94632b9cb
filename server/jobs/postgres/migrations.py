"""The schema of a PostgreSQL database, in numbered steps, and whether this release can work on it.

Table `fourstep_schema` has one row: how many steps have been made, and how many a release must know to work on the
result. A step leaves the tables so that the release before it goes on working, so servers are upgraded one by one.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from server.jobs.errors import DatabaseTooNew, DatabaseUnusable
from server.jobs.postgres import faults, tables
from server.jobs.postgres.connection import Hosts

LOG = logging.getLogger(__name__)

OLDEST_SERVER = 15
CONNECT_S = 10.0
_FAULTS = (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_PAUSE_S = 0.2  # before the next try with a database that is away
_TRIES = 5  # of a step that meets deadlocks
_LOCK = 4_207_300_471  # of fourstep's migrations, among the advisory locks of a database


@dataclasses.dataclass(frozen=True)
class Step:
    """Statements, and how many steps a release must know to work on what they leave."""

    statements: Sequence[str]
    serves: int


def _created() -> list[str]:
    """Return the SQL that creates all tables and indexes."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # untyped in SQLAlchemy
    made: list[str] = []
    for table in tables.shared.sorted_tables:
        made.append(str(sa.schema.CreateTable(table).compile(dialect=dialect)))
        made += [str(sa.schema.CreateIndex(index).compile(dialect=dialect)) for index in table.indexes]
    return made


_FIRST = Step(
    [
        *_created(),
        # Pictures do not become smaller.
        "ALTER TABLE payloads ALTER input SET STORAGE EXTERNAL, ALTER output SET STORAGE EXTERNAL",
        # Each job leaves some dead rows: they are cleared away early, or claims would have to pass by them.
        "ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)",
        "ALTER TABLE payloads SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)",
        "ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)",
        "ALTER TABLE fleet SET (fillfactor = 10)",
        "ALTER TABLE nodes SET (fillfactor = 10)",
        "INSERT INTO fleet (id, beat, beating_since, usage_at, usage) VALUES (1, 0, 0, 0, '{}')",
    ],
    serves=1,
)
_FILES = Step(
    [
        "DROP TABLE files",  # nothing was ever in it
        """
CREATE TABLE files (
    name text NOT NULL, part text NOT NULL, owner text NOT NULL, bytes bigint NOT NULL, files integer NOT NULL,
    created_at float8 NOT NULL, PRIMARY KEY (name, part)
)
""",
        "CREATE INDEX files_oldest ON files (owner, (part <> ''), created_at)",
        "ALTER TABLE files SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)",
        """
CREATE TABLE files_used (owner text PRIMARY KEY, bytes bigint NOT NULL, files bigint NOT NULL) WITH (fillfactor = 10)
""",
        "INSERT INTO files_used (owner, bytes, files) VALUES ('', 0, 0)",
        "ALTER TABLE fleet ADD COLUMN files_counted_at float8 NOT NULL DEFAULT 0",
    ],
    serves=1,
)
# A step that has shipped is never changed: add the next one.
STEPS: tuple[Step, ...] = (_FIRST, _FILES)


async def migrate(
    url: str, steps: Sequence[Step] = STEPS, *, timeout_s: float = CONNECT_S, patience_s: float = 0.0
) -> None:
    """Bring the database up to date. Raises `DatabaseUnusable` where that, or work on it, is not possible.

    `patience_s`: for a database that is away, or goes away meanwhile: it may be about to come back.
    """
    until = time.monotonic() + patience_s
    telling: Exception | None = None  # the last error that says more than that the time was over
    while True:
        try:
            await _open_and_migrate(url, steps, timeout_s)
        except DatabaseUnusable:
            raise
        except _FAULTS as error:
            first = telling is None
            if telling is None or not isinstance(error, TimeoutError):
                telling = error
            if not faults.away(error) or time.monotonic() + _PAUSE_S >= until:
                raise unusable(telling) from telling
            if first:
                LOG.warning(
                    "PostgreSQL can't be used yet (%s); waiting up to %g s", faults.database_error(error), patience_s
                )
            await asyncio.sleep(_PAUSE_S)
        else:
            return


async def _open_and_migrate(url: str, steps: Sequence[Step], timeout_s: float) -> None:
    connection = await Hosts(url).open(timeout_s=timeout_s)
    try:
        check_server(connection.get_server_version().major)
        await _check_settings(connection)
        await _migrate_beside_others(connection, steps)
    except asyncpg.InterfaceError as error:
        if connection.is_closed():
            raise ConnectionResetError(str(error)) from error
        raise
    finally:
        connection.terminate()


def unusable(error: Exception) -> DatabaseUnusable:
    """Return a server's reason not to start."""
    known = faults.database_error(error)
    hint = known.hint or "see PostgreSQL's log"
    return DatabaseUnusable(f"database: PostgreSQL can't be used ({known}). Hint: {hint}")


def check_server(major: int) -> None:
    """Raise `DatabaseUnusable` for a PostgreSQL that lacks what the statements need."""
    if major < OLDEST_SERVER:
        raise DatabaseUnusable(f"database: PostgreSQL {major} is too old. Hint: use PostgreSQL 15 or newer")


async def _check_settings(connection: Any) -> None:
    """Raise `DatabaseUnusable` where a connection has not the settings with which it was opened."""
    if await connection.fetchval("SELECT current_setting('plan_cache_mode')") != "force_generic_plan":
        raise DatabaseUnusable(f"database: a connection does not keep its settings. Hint: {faults.POOLER}")


async def _migrate_beside_others(connection: Any, steps: Sequence[Step]) -> None:
    """Make the steps, again where they met other servers' operations which lock the same tables in another order."""
    for left in reversed(range(_TRIES)):
        try:
            async with connection.transaction():
                await _migrate(connection, steps)
        except asyncpg.DeadlockDetectedError:
            if not left:
                raise
        else:
            return


async def _migrate(connection: Any, steps: Sequence[Step]) -> None:
    await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
    if await connection.fetchval("SELECT to_regclass('fourstep_schema') IS NULL"):
        await _check_empty(connection)
        await connection.execute("CREATE TABLE fourstep_schema (made integer NOT NULL, serves integer NOT NULL)")
        await connection.execute("INSERT INTO fourstep_schema VALUES (0, 0)")
    made, serves = await connection.fetchrow("SELECT made, serves FROM fourstep_schema")
    if serves > len(steps):
        raise DatabaseTooNew(
            f"database: its schema is of version {made}, which serves releases that know {serves};"
            f" this one knows {len(steps)}. Hint: upgrade fourstep"
        )
    if made >= len(steps):
        return
    for step in steps[made:]:
        for statement in step.statements:
            await connection.execute(statement)
    await connection.execute(f"UPDATE fourstep_schema SET made = {len(steps)}, serves = {steps[-1].serves}")


async def _check_empty(connection: Any) -> None:
    if await connection.fetchval("SELECT to_regclass('jobs') IS NOT NULL"):
        raise DatabaseUnusable(
            "database: it has another program's tables."
            " Hint: name an empty database in FOURSTEP_DATABASE, or another schema: ?search_path=fourstep"
        )

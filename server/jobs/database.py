"""One SQLite database: a writer thread that commits in groups, reader threads, numbered schema steps.

A write resolves after its COMMIT under `synchronous=FULL`: it is then on disk. Readers never wait for the writer. All
code that is specific to SQLite is in this module. A data directory, and so its database, has one server: the `serve`
command holds a lock on it.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from server.jobs.group_commit import GroupCommit
from server.jobs.schema import STEPS

T = TypeVar("T")
Step: TypeAlias = Callable[[sa.Connection], None]

DatabaseError = DBAPIError  # what reads and writes raise when the disk is full or broken

READERS = 2  # reader threads: one may wait for the disk while the other answers
BUSY_TIMEOUT_S = 10  # a checkpoint that truncates holds the write lock for as long as it copies
WAL_BYTES = 64 * 1024 * 1024  # the write-ahead log is cut back to this after a burst of large inputs


class DatabaseTooNew(Exception):
    """The database was written by a newer release."""


class Database:
    """An open database, its tables brought up to date. Opening blocks; methods are called from the event loop."""

    def __init__(self, path: Path, steps: Sequence[Step] = STEPS) -> None:
        self._engine = sa.create_engine(
            "sqlite+pysqlite://",
            creator=lambda: _connect(path),
            poolclass=sa.QueuePool,
            hide_parameters=True,  # errors are logged, prompts are not
        )
        self._connection = self._engine.connect()
        with self._transaction() as connection:
            _migrate(connection, steps)
        self._writer = GroupCommit(self._transaction, name="database-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="database-reader")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._connection.begin():
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield self._connection

    def write(self, operation: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Return a future of what `operation` returns, resolved after COMMIT.

        The operation may be run twice, and is run even if its caller no longer waits.
        """
        return self._writer.submit(operation)

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run `query` on a reader thread and return its value."""

        def run() -> T:
            with self._engine.connect() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def close(self) -> None:
        """Write out what was submitted, then close the file."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.close()
        self._readers.shutdown()
        self._connection.close()
        self._engine.dispose()

    async def used_bytes(self) -> int:
        """Return the size of the tables on disk in bytes, without free pages."""

        def query(connection: sa.Connection) -> int:
            names = ("page_count", "freelist_count", "page_size")
            pages, free, size = (connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names)
            return int((pages - free) * size)

        return await self.read(query)

    async def give_back_pages(self, count: int) -> None:
        """Return up to `count` free pages to the file system."""

        def operation(connection: sa.Connection) -> None:
            free: int = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            for _ in range(min(free, count)):  # asked for more at once, Python's driver stops after the first
                connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")

        await self.write(operation)

    async def empty_log(self) -> None:
        """Copy the write-ahead log into the file and truncate it, so that no deleted data is left in it.

        While others read this may do only a part: call it again later.
        """
        await self.read(lambda connection: connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all())


@contextlib.contextmanager
def secure_delete(connection: sa.Connection) -> Iterator[None]:
    """Make deletes within this context overwrite with zeros; others only free the pages, which writes half as much."""
    connection.exec_driver_sql("PRAGMA secure_delete=ON").all()
    try:
        yield
    finally:
        connection.exec_driver_sql("PRAGMA secure_delete=OFF").all()


def log_database_error(log: logging.Logger, what: str, error: DatabaseError) -> None:
    """Log an error in one line: on a full disk it comes every second, and a traceback adds nothing."""
    log.error("%s: %s", what, error.orig)


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: Python's own BEGIN would be a deferred one, and come too late for PRAGMA user_version.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # counts only before the first table
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=OFF")  # some builds have it on; see `secure_delete`
    connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    return connection


def _migrate(connection: sa.Connection, steps: Sequence[Step]) -> None:
    version: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version > len(steps):
        raise DatabaseTooNew(f"the job database is of version {version}, this release knows {len(steps)}: upgrade it")
    for step in steps[version:]:
        step(connection)
    connection.exec_driver_sql(f"PRAGMA user_version={len(steps)}")

"""One SQLite database: a writer thread that commits in groups, reader threads, numbered schema steps.

A write resolves after its COMMIT under `synchronous=FULL`: it is then on disk. Readers never wait for the writer. All
code that is specific to SQLite is in this module. A data directory, and so its database, has one server: the `serve`
command holds a lock on it.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from server.jobs.errors import DatabaseError, DatabaseTooNew, DatabaseUnusable
from server.jobs.sqlite.group_commit import GroupCommit
from server.jobs.sqlite.statements import STEPS

T = TypeVar("T")
Step: TypeAlias = Callable[[sa.Connection], None]

READERS = 2  # reader threads: one may wait for the disk while the other answers
LOCK_WAIT_S = 10.0  # a checkpoint that truncates holds the write lock for as long as it copies, and so do backups
LOCK_TRY_S = 1.0  # one try at the lock: a server that stops waits no longer
WAL_BYTES = 64 * 1024 * 1024  # the write-ahead log is cut back to this after a burst of large inputs


# By SQLite's result code (https://sqlite.org/rescode.html): what the operator can do.
_HINTS = {
    sqlite3.SQLITE_FULL: "free some space, or choose another --data-dir",
    sqlite3.SQLITE_IOERR: "see whether the disk is full or failing (the system's log says so)",
    sqlite3.SQLITE_READONLY: "let this user write the file and its folder, or choose another --data-dir",
    sqlite3.SQLITE_PERM: "let this user write the file and its folder, or choose another --data-dir",
    sqlite3.SQLITE_CANTOPEN: "let this user write the file and its folder, and see whether the disk is full",
    sqlite3.SQLITE_BUSY: "another program has locked it, perhaps a backup: wait for its end, or end it",
}
_DAMAGED = "restore it from a backup; or move it away: the queue is then empty, stored files stay"
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Database:
    """An open database, its tables brought up to date. Opening blocks; methods are called from the event loop.

    Opening raises `DatabaseUnusable` for a file that is damaged, not writable, locked or not ours, and for a full disk.
    """

    def __init__(
        self,
        path: Path,
        steps: Sequence[Step] = STEPS,
        *,
        lock_wait_s: float = LOCK_WAIT_S,
        lock_try_s: float = LOCK_TRY_S,
    ) -> None:
        self._lock_wait_s = lock_wait_s
        self._locked = False
        self._hurries = False
        self._engine = sa.create_engine(
            "sqlite+pysqlite://",
            creator=lambda: _connect(path, lock_try_s),
            poolclass=sa.QueuePool,
            hide_parameters=True,  # errors are logged, prompts are not
        )
        with usable(path):
            self._connection = self._engine.connect()
            try:
                with self._transaction() as connection:
                    _migrate(path, connection, steps)
            except BaseException:
                self._connection.close()
                self._engine.dispose()
                raise
        self._writer = GroupCommit(self._transaction, name="database-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="database-reader")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with _database_errors(), self._connection.begin():
            self._begin()
            yield self._connection

    def _begin(self) -> None:
        """Open a transaction once the write lock is free.

        Where another program has held it for `lock_wait_s`, later transactions try once each until it is free again: so
        callers are refused soon, however many have come meanwhile. They do too after `hurry`.
        """
        until = time.monotonic() + self._lock_wait_s
        while True:
            try:
                self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            except DBAPIError as error:
                if _code(error) != sqlite3.SQLITE_BUSY:
                    raise
                self._locked = self._locked or time.monotonic() >= until
                if self._locked or self._hurries:
                    raise
            else:
                self._locked = False
                return

    def hurry(self) -> None:
        """Let no write wait for another program's lock from now on: the server stops."""
        self._hurries = True

    def write(self, operation: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Return a future of what `operation` returns, resolved after COMMIT.

        The operation may be run twice, and is run even if its caller no longer waits.
        """
        return self._writer.submit(operation)

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run `query` on a reader thread and return its value."""

        def run() -> T:
            with _database_errors(), self._engine.connect() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def close(self) -> None:
        """Write out what was submitted, unless another program holds the lock; then close the file."""
        self.hurry()
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


@contextlib.contextmanager
def usable(path: Path) -> Iterator[None]:
    """Context of a server's first work on the database. Turns `DatabaseError` into `DatabaseUnusable`."""
    try:
        with _database_errors():
            yield
    except DatabaseError as error:
        raise DatabaseUnusable(f"data-dir: {path} can't be used ({error}). Hint: {error.hint}") from error


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    """Turn what the driver raises into `DatabaseError`."""
    try:
        yield
    except DBAPIError as error:
        code = _code(error)
        hint = _HINTS.get(code, _DAMAGED)
        raise DatabaseError(str(error.orig), hint=hint, damaged=code in _BROKEN) from error


def _code(error: DBAPIError) -> int:
    """Return SQLite's primary result code."""
    code: int = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _connect(path: Path, lock_try_s: float) -> sqlite3.Connection:
    # isolation_level=None: Python's own BEGIN would be a deferred one, and come too late for PRAGMA user_version.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=lock_try_s)
    connection.text_factory = _text
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # counts only before the first table
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=OFF")  # some builds have it on; see `secure_delete`
    connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    return connection


def _text(data: bytes) -> str:
    """Return a text of the database. One damaged text must not make every query that meets its row fail."""
    return data.decode(errors="replace")


def _migrate(path: Path, connection: sa.Connection, steps: Sequence[Step]) -> None:
    version: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version > len(steps):
        raise DatabaseTooNew(
            f"data-dir: {path} is of version {version}, this release knows {len(steps)}."
            " Hint: upgrade fourstep, or choose another --data-dir"
        )
    if not version and sa.inspect(connection).get_table_names():
        raise DatabaseUnusable(f"data-dir: {path} is another program's database. Hint: choose another --data-dir")
    for step in steps[version:]:
        step(connection)
    connection.exec_driver_sql(f"PRAGMA user_version={len(steps)}")

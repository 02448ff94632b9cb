"""Connections to one PostgreSQL, and the one way through which every operation goes.

An operation is one statement, which commits by itself. A COMMIT whose answer was lost may have happened, so each names
what it changes by id and fence, and may be repeated in the same words. An operation waits for a database that is away,
goes on with another connection where one is lost, and fails with `DatabaseError` once `patience_s` is over. A
connection that gives no answer until then is dropped, and with it the idle ones, which lead to the same place.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import asyncpg

from server.jobs.postgres import faults
from server.jobs.postgres.connection import Connection, Hosts, Rows, Statement, left

T = TypeVar("T")

PATIENCE_S = 5.0
CONNECTIONS = 8  # more at once would not commit faster, and a hundred servers share PostgreSQL's limit
KEPT_IDLE_S = 30.0  # a connection that was not needed for longer is closed
PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.4)  # before each next try; the last again and again
HURRY_S = 1.0  # patience of a server that stops


_LOCK = Statement("chore", "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))")


class Pool:
    """At most `connections` connections, opened when they are needed. To be used on the event loop.

    `url`: as libpq and asyncpg have it: several hosts, `target_session_attrs`, `sslmode`; the password also from the
    passfile. `observe(operation, seconds)` is called after each operation, whatever came of it.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = PATIENCE_S,
        connections: int = CONNECTIONS,
        kept_idle_s: float = KEPT_IDLE_S,
        observe: Callable[[str, float], None] = lambda operation, seconds: None,
    ) -> None:
        self._hosts = Hosts(url)
        self._patience_s = patience_s
        self._kept_idle_s = kept_idle_s
        self._observe = observe
        self._slots = asyncio.Semaphore(connections)  # one for each connection that is in use or being opened
        self._chores = asyncio.Semaphore(max(1, connections // 2))  # the others are left for what chores do
        self._idle: list[Connection] = []  # the one used last is used next, so that the others can be closed
        self._writes: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.opened = 0  # connections that are open
        self.down_since: float | None = None  # Unix time since which the database can't be reached

    @property
    def up(self) -> bool:
        """Whether the database could be reached when it was last needed."""
        return self.down_since is None

    def write(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Return a future of what `work` returns. It is carried out even if its caller no longer waits."""
        task = asyncio.get_running_loop().create_task(work)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return asyncio.shield(task)

    async def read(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns. A caller that leaves would break the connection, so it is carried out, too."""
        return await self.write(work)

    async def fetch(self, statement: Statement, *arguments: Any) -> Rows:
        """Execute a statement, repeatedly if need be, and return its rows. Raises `DatabaseError`.

        To be called in what `write` and `read` carry out.
        """
        return await self._insist(statement.operation, lambda until: self._fetch_once(statement, arguments, until))

    @contextlib.asynccontextmanager
    async def chore(self, name: str) -> AsyncIterator[bool]:
        """Context of work that one server at a time may do, all others leaving it: yield whether it is this one.

        Raises `DatabaseError` on entering. If the connection is lost meanwhile, another server may begin.
        """
        async with self._chores:
            connection = await self._insist("chore", lambda until: self._lock(name, until))
            try:
                yield connection is not None
            finally:
                if connection is not None:
                    await self._unlock(connection)

    def hurry(self) -> None:
        """Wait no longer than a second from now on: the server stops."""
        self._patience_s = min(self._patience_s, HURRY_S)

    async def close(self) -> None:
        """Let what was begun end, then close all connections; what comes later gets one that is kept no longer."""
        self.hurry()
        while self._writes:
            await asyncio.wait(set(self._writes))
        self._closed = True
        for connection in self._take_idle():
            await self._part(connection)

    # --- connections

    async def _insist(self, operation: str, attempt: Callable[[float], Awaitable[T]]) -> T:
        """Return what `attempt(until)` returns, which is called again where that may help, until patience is over."""
        began = time.monotonic()
        until = began + self._patience_s
        tries = 0
        telling: Exception | None = None  # the last error that says more than that the time was over
        try:
            while True:
                try:
                    return await attempt(until)
                except Failed as failed:
                    pause = PAUSES_S[min(tries, len(PAUSES_S) - 1)] * random.uniform(0.5, 1.0)  # noqa: S311
                    tries += 1
                    if telling is None or not isinstance(failed.error, TimeoutError):
                        telling = failed.error
                    if not failed.passing or time.monotonic() + pause >= until:
                        raise faults.database_error(telling) from telling
                    await asyncio.sleep(pause)
        finally:
            self._observe(operation, time.monotonic() - began)

    async def _fetch_once(self, statement: Statement, arguments: Sequence[Any], until: float) -> Rows:
        connection = await self._take(until)
        try:
            rows = await connection.fetch(statement, arguments, until)
        except BaseException as error:
            self._return_after(error, connection)
            raise
        self._return(connection)
        return rows

    async def _lock(self, name: str, until: float) -> Connection | None:
        """Return a connection whose transaction holds this lock; None if another server has it."""
        connection = await self._take(until)
        try:
            await connection.raw.execute("BEGIN", timeout=left(until))
            ((mine,),) = await connection.fetch(_LOCK, (name,), until)
            if not mine:
                await connection.raw.execute("ROLLBACK", timeout=left(until))
        except BaseException as error:
            self._return_after(error, connection)
            raise
        if mine:
            return connection
        self._return(connection)
        return None

    async def _unlock(self, connection: Connection) -> None:
        try:
            await connection.raw.execute("ROLLBACK", timeout=HURRY_S)
        except BaseException as error:
            with contextlib.suppress(Failed):  # with its connection the lock has gone
                self._return_after(error, connection)
                raise
        else:
            self._return(connection)

    async def _take(self, until: float) -> Connection:
        """Return a connection of one's own, ready before `until`. Raises `Failed`."""
        await self._slot(until)
        try:
            return self._ready() or await self._open(until)
        except BaseException as error:
            self._slots.release()
            self._note(error)
            raise

    def _return(self, connection: Connection) -> None:
        """Take a connection back that has served."""
        self.down_since = None
        self._keep(connection)
        self._slots.release()

    def _return_after(self, error: BaseException, connection: Connection) -> None:
        """Take a connection back on which an error happened. Raises `Failed` but for a cancellation."""
        closed = connection.raw.is_closed()
        if closed or faults.spoils(error):
            self._drop(connection)
        else:
            self._keep(connection)
        self._slots.release()
        self._note(error, closed=closed)

    def _note(self, error: BaseException, *, closed: bool = False) -> None:
        """Raise what has failed as `Failed`."""
        if not isinstance(error, Exception):
            return
        if isinstance(error, TimeoutError):
            for idle in self._take_idle():
                self._drop(idle)
        if self.down_since is None and faults.unreachable(error):
            self.down_since = time.time()
        raise Failed(error, passing=faults.worth_a_try(error, closed=closed)) from error

    async def _slot(self, until: float) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(left(until)):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Failed(error, passing=True) from error

    def _ready(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.raw.is_closed():
                return connection
            self.opened -= 1
        return None

    async def _open(self, until: float) -> Connection:
        connection = Connection(await self._hosts.open(timeout_s=left(until), statement_s=self._patience_s + 1.0))
        self.opened += 1
        return connection

    def _keep(self, connection: Connection) -> None:
        if self._closed:
            self._drop(connection)
            return
        connection.idle_since = now = time.monotonic()
        self._idle.append(connection)
        if self._idle[0].idle_since < now - self._kept_idle_s:
            self.write(self._part(self._idle.pop(0)))

    def _take_idle(self) -> list[Connection]:
        taken, self._idle = self._idle, []
        return taken

    def _drop(self, connection: Connection) -> None:
        """Close at once, without a word to the other side."""
        connection.raw.terminate()
        self.opened -= 1

    async def _part(self, connection: Connection) -> None:
        """Close a connection that is not in use, and tell the other side."""
        self.opened -= 1
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # it is closed all the same
            await connection.raw.close(timeout=HURRY_S)


class Failed(Exception):
    """One try failed, by `error`; `passing`: another may succeed."""

    def __init__(self, error: Exception, *, passing: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.passing = passing

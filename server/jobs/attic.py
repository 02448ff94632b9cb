"""Jobs that are done with, and what becomes of what is stored of them. `server.jobs.retention` says when."""

import asyncio
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from server.jobs import schema as sql
from server.jobs.database import Database, secure_delete

EXPIRE_AT_ONCE = 200  # jobs expired in one transaction, so that submits wait milliseconds for it, not seconds
FREE_PAGES_AT_ONCE = 2048  # 8 MiB given back to the disk in one transaction, for the same reason


class Attic:
    """The old jobs of one job database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def expire(self, before: float) -> asyncio.Future[list[str]]:
        """Drops payloads and logs of the oldest jobs finished by then, a bounded number at a time, leaving tombstones;
        returns their request ids. Jobs whose webhook is still to be delivered are kept."""

        def operation(connection: sa.Connection) -> list[str]:
            rows = connection.execute(sql.OLD_RESULTS, {"before": before, "count": EXPIRE_AT_ONCE}).all()
            return _leave_tombstones(connection, rows)

        return self._database.write(operation)

    def forget(self, request_id: str) -> asyncio.Future[list[str]]:
        """Wipes what was stored of a delivered job whose owner asked for no storing; other jobs are left alone."""

        def operation(connection: sa.Connection) -> list[str]:
            rows = connection.execute(sql.PRIVATE_RESULT, {"request": request_id}).all()
            if not rows:
                return []
            with secure_delete(connection):
                return _leave_tombstones(connection, rows)

        return self._database.write(operation)

    def forget_tombstones(self, before: float) -> asyncio.Future[list[str]]:
        """Deletes the last trace of jobs finished by then and expired; returns their request ids."""

        def operation(connection: sa.Connection) -> list[str]:
            rows = connection.execute(sql.OLD_TOMBSTONES, {"before": before, "count": EXPIRE_AT_ONCE}).all()
            connection.execute(sql.DELETE_JOBS, {"seqs": [row.seq for row in rows]})
            return [row.id for row in rows]

        return self._database.write(operation)

    async def used_bytes(self) -> int:
        """What all jobs take on disk."""
        return await self._database.used_bytes()

    async def tidy(self, *, empty_log: bool) -> None:
        """Gives freed pages back to the disk; with `empty_log` nothing forgotten is left in the write-ahead log."""
        await self._database.give_back_pages(FREE_PAGES_AT_ONCE)
        if empty_log:
            await self._database.empty_log()


def _leave_tombstones(connection: sa.Connection, rows: Sequence[sa.Row[*tuple[Any, ...]]]) -> list[str]:
    """Deletes all but the tombstones of these jobs (rows of seq and id)."""
    which = {"seqs": [row.seq for row in rows]}
    for statement in (sql.DELETE_PAYLOADS, sql.DELETE_EVENTS, sql.BURY):
        connection.execute(statement, which)
    return [row.id for row in rows]

"""Payloads that lie outside the database: large ones, and those of owners who asked for no storing.

A deleted row lives on in PostgreSQL's log, so what is not to be stored never enters it. A payload is put before the
commit that names it, and deleted after the commit that lets it go. Table `objects` knows the names in between: what a
server leaves behind that ends there is deleted by whichever looks next.
"""

import logging
import uuid
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from server.jobs.errors import DatabaseError, log_database_error
from server.jobs.job import Job
from server.jobs.postgres import upkeep
from server.jobs.postgres.connection import Statement
from server.jobs.postgres.pool import Pool

LOG = logging.getLogger(__name__)

INLINE_BYTES = 256 * 1024  # larger ones would swell the database's log, backups and standbys
ORPHAN_S = 3600.0  # an object that no row has come to name by then was left behind
SWEPT_AT_ONCE = 200


class PayloadStore(Protocol):
    """Objects by name, as the object store keeps them. Each method raises `DatabaseError` while it is away or full."""

    async def put(self, name: str, data: bytes) -> None:
        """Store an object, whole or not at all. It is there once this returns."""
        ...

    async def get(self, name: str) -> bytes | None:
        """Return the object; None if there is none."""
        ...

    async def delete(self, names: Collection[str]) -> None:
        """Delete these objects, some of which may not be there."""
        ...


class Payloads:
    """The payloads of a job database."""

    def __init__(self, pool: Pool, outside: PayloadStore, inline_bytes: int) -> None:
        self._pool = pool
        self._outside = outside
        self._inline_bytes = inline_bytes

    async def put(self, data: bytes, *, store_io: bool) -> tuple[bytes | None, str | None]:
        """Return the payload for its row, or the name under which it has been put. `store_io`: it may be in a row."""
        if store_io and len(data) <= self._inline_bytes:
            return data, None
        # A new name each time: whoever puts the same payload again, or another for the same job, overwrites nothing.
        name = f"jobs/{uuid.uuid4().hex}"
        await self._pool.fetch(upkeep.PUTTING, name, ORPHAN_S)
        await self._outside.put(name, data)
        return None, name

    def is_inline(self, job: Job) -> bool:
        """Return whether a claimed job's input lies in its row."""
        return job.store_io and not job.damaged and len(job.input) <= self._inline_bytes

    async def get(self, inline: bytes | None, name: str | None) -> bytes | None:
        """Return the payload that a row has or names; None if it is gone."""
        return inline if name is None else await self._outside.get(name)

    def let_go(self, names: Iterable[str | None]) -> None:
        """Delete these objects, which no row names any longer. The caller does not wait; what fails is swept later."""
        if gone := [name for name in names if name is not None]:
            self._pool.write(self._try_to_delete(gone))

    async def expire(self, statement: Statement, *arguments: Any) -> list[str]:
        """Leave tombstones of the jobs that the statement picks. Return their ids."""
        rows = await self._pool.fetch(statement, *arguments)
        names = [name for row in rows for name in row["names"] or ()]
        if names:
            await self._try_to_delete(names)
        return [row["id"] for row in rows]

    async def sweep(self) -> None:
        """Delete objects that were left behind."""
        if names := [row[0] for row in await self._pool.fetch(upkeep.ORPHANS, SWEPT_AT_ONCE)]:
            await self._delete(names)

    async def _try_to_delete(self, names: list[str]) -> None:
        try:
            await self._delete(names)
        except DatabaseError as error:
            log_database_error(LOG, "payloads could not be deleted, and will be swept", error)

    async def _delete(self, names: list[str]) -> None:
        await self._outside.delete(names)
        await self._pool.fetch(upkeep.DELETED, names)

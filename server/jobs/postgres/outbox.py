"""The outbox in PostgreSQL, which several servers empty: what is due is leased to the one that takes it."""

import asyncio
from typing import Any

from typing_extensions import override

from server.jobs.postgres import statements as sql
from server.jobs.postgres.connection import Statement
from server.jobs.postgres.pool import Pool
from server.jobs.store import NOTHING_BUSY, Busy, Outbox, Webhook

LEASE_S = 30.0  # twice as long as a receiver may take


class PostgresOutbox(Outbox):
    """See `Outbox`. `node`: this server's id; what it was given before and does not name as in flight it gets again."""

    def __init__(self, pool: Pool, *, node: str, lease_s: float = LEASE_S) -> None:
        self._pool = pool
        self._node = node
        self._lease_s = lease_s

    @override
    async def due(self, count: int, busy: Busy = NOTHING_BUSY) -> list[Webhook]:
        rows = await self._pool.read(self._pool.fetch(sql.DUE, self._node, *busy, count, self._lease_s))
        return [Webhook(*row[1:]) for row in sorted(rows, key=lambda row: (row[0], row[1]))]

    @override
    async def next_due_in(self, busy: Busy = NOTHING_BUSY) -> float | None:
        rows = await self._pool.read(self._pool.fetch(sql.NEXT_DUE, self._node, *busy))
        return rows[0][0] if rows else None

    @override
    def failed(self, webhook: Webhook, again_in_s: float) -> asyncio.Future[None]:
        return self._execute(sql.FAILED, webhook.id, webhook.attempts + 1, again_in_s)

    @override
    def done(self, webhook: Webhook) -> asyncio.Future[None]:
        return self._execute(sql.DONE_WITH, webhook.id)

    def _execute(self, statement: Statement, *arguments: Any) -> asyncio.Future[None]:
        async def execute() -> None:
            await self._pool.fetch(statement, *arguments)

        return self._pool.write(execute())

"""The outbox of one SQLite database."""

import asyncio
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from typing_extensions import override

from server.jobs.sqlite import statements as sql
from server.jobs.sqlite.database import Database
from server.jobs.store import NOTHING_BUSY, Busy, Outbox, Webhook


class SQLiteOutbox(Outbox):
    """See `Outbox`. `clock` is that of the jobs."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._now = clock

    @override
    async def due(self, count: int, busy: Busy = NOTHING_BUSY) -> list[Webhook]:
        wanted = {"now": self._now(), "count": count, **busy._asdict()}
        return await self._database.read(
            lambda connection: [Webhook(*row) for row in connection.execute(sql.DUE_WEBHOOKS, wanted)]
        )

    @override
    async def next_due_in(self, busy: Busy = NOTHING_BUSY) -> float | None:
        then: float | None = await self._database.read(
            lambda connection: connection.execute(sql.NEXT_WEBHOOK, busy._asdict()).scalar()
        )
        return None if then is None else then - self._now()

    @override
    def failed(self, webhook: Webhook, again_in_s: float) -> asyncio.Future[None]:
        later = {"row": webhook.id, "made": webhook.attempts + 1, "then": self._now() + again_in_s}
        return self._execute(sql.DELAY_WEBHOOK, later)

    @override
    def done(self, webhook: Webhook) -> asyncio.Future[None]:
        return self._execute(sql.DELETE_WEBHOOK, {"row": webhook.id})

    def _execute(self, statement: sa.Update | sa.Delete, values: dict[str, Any]) -> asyncio.Future[None]:
        def operation(connection: sa.Connection) -> None:
            connection.execute(statement, values)

        return self._database.write(operation)

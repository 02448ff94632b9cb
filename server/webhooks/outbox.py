"""Webhooks that are still to be delivered. `server.jobs.store` puts them in, in the transaction that ends their job."""

import asyncio
from collections.abc import Collection

import msgspec

from server.jobs import schema as sql
from server.jobs.database import Database


class Webhook(msgspec.Struct, frozen=True):
    """A delivery that is due: its outbox row, where to, how often it has been tried, since when, and for which job."""

    id: int
    url: str
    origin: str
    attempts: int
    due_at: float
    request_id: str


class Outbox:
    """The outbox of one job database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(
        self, now: float, count: int, in_flight: Collection[int], busy_origins: Collection[str]
    ) -> list[Webhook]:
        """Up to `count` deliveries that are due, oldest first, without those in flight and those to busy origins."""
        wanted = {"now": now, "count": count, "in_flight": list(in_flight), "busy": list(busy_origins)}
        return await self._database.read(
            lambda connection: [Webhook(*row) for row in connection.execute(sql.DUE_WEBHOOKS, wanted)]
        )

    async def next_due_at(self, in_flight: Collection[int], busy_origins: Collection[str]) -> float | None:
        """When the next delivery is due, but for the same exceptions; None if there is none."""
        wanted = {"in_flight": list(in_flight), "busy": list(busy_origins)}
        return await self._database.read(lambda connection: connection.execute(sql.NEXT_WEBHOOK, wanted).scalar())

    def failed(self, webhook: Webhook, again_at: float) -> asyncio.Future[int]:
        """Notes one more attempt, and when the next is due."""
        later = {"row": webhook.id, "made": webhook.attempts + 1, "then": again_at}
        return self._database.write(lambda connection: connection.execute(sql.DELAY_WEBHOOK, later).rowcount)

    def done(self, webhook: Webhook) -> asyncio.Future[int]:
        """Takes it out: delivered, or given up."""
        return self._database.write(
            lambda connection: connection.execute(sql.DELETE_WEBHOOK, {"row": webhook.id}).rowcount
        )

"""The outbox: webhooks still to be delivered. Each is put in by the transaction that ends its job."""

import asyncio
from collections.abc import Collection

import msgspec

from server.jobs import schema as sql
from server.jobs.database import Database


class Webhook(msgspec.Struct, frozen=True):
    """A due delivery: outbox row, URL and its origin, attempts made, time since which it is due, and the job's id."""

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
        """Return up to `count` due deliveries, oldest first, without those in flight and those to busy origins."""
        wanted = {"now": now, "count": count, "in_flight": list(in_flight), "busy": list(busy_origins)}
        return await self._database.read(
            lambda connection: [Webhook(*row) for row in connection.execute(sql.DUE_WEBHOOKS, wanted)]
        )

    async def next_due_at(self, in_flight: Collection[int], busy_origins: Collection[str]) -> float | None:
        """Return when the next delivery is due, with the same exceptions; None if there is none."""
        wanted = {"in_flight": list(in_flight), "busy": list(busy_origins)}
        return await self._database.read(lambda connection: connection.execute(sql.NEXT_WEBHOOK, wanted).scalar())

    def failed(self, webhook: Webhook, again_at: float) -> asyncio.Future[int]:
        """Record one more attempt, and when the next is due."""
        later = {"row": webhook.id, "made": webhook.attempts + 1, "then": again_at}
        return self._database.write(lambda connection: connection.execute(sql.DELAY_WEBHOOK, later).rowcount)

    def done(self, webhook: Webhook) -> asyncio.Future[int]:
        """Remove a webhook: it was delivered or given up."""
        return self._database.write(
            lambda connection: connection.execute(sql.DELETE_WEBHOOK, {"row": webhook.id}).rowcount
        )

"""The outbox: webhooks still to be delivered. Each is put in by the transaction that ends its job."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from server.jobs import schema as sql
from server.jobs.database import Database


class Webhook(msgspec.Struct, frozen=True):
    """A due delivery: outbox row, URL and its origin, attempts made, time since which it is due; job id; owner."""

    id: int
    url: str
    origin: str
    attempts: int
    due_at: float
    request_id: str
    owner: str


class Busy(NamedTuple):
    """What is not to be delivered now: rows that are in flight; origins and owners that have enough in flight."""

    in_flight: Sequence[int] = ()
    origins: Sequence[str] = ()
    owners: Sequence[str] = ()


_NOTHING = Busy()


class Outbox:
    """The outbox of one job database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, now: float, count: int, busy: Busy = _NOTHING) -> list[Webhook]:
        """Return up to `count` due deliveries, oldest first, without those that `busy` excludes."""
        wanted = {"now": now, "count": count, **busy._asdict()}
        return await self._database.read(
            lambda connection: [Webhook(*row) for row in connection.execute(sql.DUE_WEBHOOKS, wanted)]
        )

    async def next_due_at(self, busy: Busy = _NOTHING) -> float | None:
        """Return when the next delivery is due, with the same exceptions; None if there is none."""
        return await self._database.read(
            lambda connection: connection.execute(sql.NEXT_WEBHOOK, busy._asdict()).scalar()
        )

    def failed(self, webhook: Webhook, again_at: float) -> asyncio.Future[int]:
        """Record one more attempt, and when the next is due."""
        later = {"row": webhook.id, "made": webhook.attempts + 1, "then": again_at}
        return self._database.write(lambda connection: connection.execute(sql.DELAY_WEBHOOK, later).rowcount)

    def done(self, webhook: Webhook) -> asyncio.Future[int]:
        """Remove a webhook: it was delivered or given up."""
        return self._database.write(
            lambda connection: connection.execute(sql.DELETE_WEBHOOK, {"row": webhook.id}).rowcount
        )

"""How long results are kept: until an age, a disk quota, or delivery for owners who asked for no storing.

An expired job leaves a tombstone, so that its request id is answered with 410 (it was here) and not with 404.

Inputs of unfinished jobs are never dropped, so of the disk quota one key's may take its share and no more. When the
quota is used up, results of the owner that has the most there go first, and that owner's submits are refused. All are
refused where twice the quota is used and no old result is left to drop, so that it is a bound.
"""

import collections
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from server.fal.errors import overloaded
from server.jobs import schema as sql
from server.jobs.database import Database, DatabaseError, log_database_error, secure_delete
from server.jobs.job import NewJob
from server.settings import QueueSettings

LOG = logging.getLogger(__name__)

FRESH_S = 600.0  # results younger than this are kept even on a full disk: their owners have yet to fetch them
EXPIRE_AT_ONCE = 200  # jobs expired in one transaction, so that submits wait milliseconds for it, not seconds
FREE_PAGES_AT_ONCE = 2048  # 8 MiB given back to the disk in one transaction, for the same reason


class Retention:
    """Expires the jobs of one database. `forgotten` is called with the request ids whose payloads are deleted."""

    def __init__(
        self,
        database: Database,
        forgotten: Callable[[Iterable[str]], None],
        settings: QueueSettings,
        *,
        key_share: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._forgotten = forgotten
        self._settings = settings
        self._key_share = key_share
        self._now = clock
        self._wiped = False  # since the write-ahead log was last emptied
        self._to_forget: set[str] = set()  # those that could not be wiped because the disk was full
        self._inputs: collections.Counter[str] = collections.Counter()  # bytes by owner, where they may be too many
        self._heaviest: str | None = None  # whose submits are refused while the disk is full; None: all
        self.disk_full = False

    def admit(self, new: NewJob) -> None:
        """Count a new job's input. Raises `RequestError` 429 where there is no room on disk for a job of this owner.

        It goes by the last measurement, and what has been counted since.
        """
        if new.max_owned_bytes is not None and self._inputs[new.owner] + len(new.input) > new.max_owned_bytes:
            raise overloaded("This key's queued inputs are at their share of the disk quota")
        if self._inputs.total() > self._settings.jobs_quota_bytes:
            raise overloaded("The queue's disk quota is used up by requests that wait")
        if self.disk_full and self._heaviest in {None, new.owner}:
            raise overloaded("The queue's disk quota is used up")
        self._inputs[new.owner] += len(new.input)

    async def forget(self, request_id: str) -> None:
        """Wipe a delivered job whose owner asked for no storing, unless its webhook is still to be delivered."""
        self._to_forget.add(request_id)
        try:
            await self._wipe(sql.PRIVATE_RESULT, request_id)
        except DatabaseError as error:  # wiping writes, too: tried again until there is room
            log_database_error(LOG, "a delivered job could not be wiped", error)
            return
        self._to_forget.discard(request_id)

    async def delete(self, request_id: str) -> None:
        """Wipe an ended job at its owner's wish; its webhook, if still to be delivered, says that nothing is stored.

        Raises `DatabaseError` if that can't be done.
        """
        await self._wipe(sql.ENDED_RESULT, request_id)

    async def _wipe(self, which: sa.Select[Any], request_id: str) -> None:
        wiped = await self._database.write(lambda connection: _wipe(connection, which, request_id))
        self._forgotten(wiped)
        self._wiped = self._wiped or wiped != []

    async def keep_quota(self) -> None:
        """Measure the database; while it is over its quota, expire old results. To be called every second.

        Among the old results, those of the owner that has the most go first, oldest first.
        """
        for request_id in list(self._to_forget):
            await self.forget(request_id)
        quota = self._settings.jobs_quota_bytes
        used = await self._database.used_bytes()
        # With less in all, no key can have its share.
        self._inputs = (
            await self._bytes_by_owner(sql.INPUT_BYTES) if used > quota * self._key_share else collections.Counter()
        )
        self.disk_full = used > quota
        if self.disk_full:
            heaviest_first = (self._inputs + await self._bytes_by_owner(sql.RESULT_BYTES)).most_common()
            before = self._now() - FRESH_S
            dropped = False
            for owner, _ in heaviest_first:
                if dropped := await self._expire_some(before, owner) > 0:
                    break
            self._heaviest = heaviest_first[0][0] if heaviest_first and (dropped or used <= 2 * quota) else None
        if self.disk_full or self._wiped:
            empty_log, self._wiped = self._wiped, False
            await self._database.give_back_pages(FREE_PAGES_AT_ONCE)
            if empty_log:  # so that nothing wiped is left in the write-ahead log
                await self._database.empty_log()

    async def expire(self) -> None:
        """Expire results by age and delete old tombstones. To be called every half minute."""
        now = self._now()
        while await self._expire_some(now - self._settings.result_ttl) == EXPIRE_AT_ONCE:
            pass
        tombstones_before = now - self._settings.tombstone_ttl
        await self._database.write(lambda connection: _delete_tombstones(connection, tombstones_before))
        await self._database.give_back_pages(FREE_PAGES_AT_ONCE)

    async def _bytes_by_owner(self, query: sa.Select[Any]) -> "collections.Counter[str]":
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return collections.Counter({owner: size or 0 for owner, size in rows})

    async def _expire_some(self, before: float, owner: str | None = None) -> int:
        """Expire the oldest jobs (of one owner) finished at or before `before`, at most `EXPIRE_AT_ONCE`.

        Return their number.
        """
        expired = await self._database.write(lambda connection: _expire(connection, before, owner))
        self._forgotten(expired)
        return len(expired)


def _expire(connection: sa.Connection, before: float, owner: str | None) -> list[str]:
    """Expire old jobs, but for those whose webhook is still to be delivered. Return their request ids."""
    which = {"before": before, "count": EXPIRE_AT_ONCE}
    if owner is None:
        rows = connection.execute(sql.OLD_RESULTS, which).all()
    else:
        rows = connection.execute(sql.OLD_RESULTS_OF, which | {"owned_by": owner}).all()
    return _leave_tombstones(connection, rows)


def _wipe(connection: sa.Connection, which: sa.Select[Any], request_id: str) -> list[str]:
    """Overwrite what is stored of a job. Return its request id, or nothing if it is not one of `which`."""
    rows = connection.execute(which, {"request": request_id}).all()
    if not rows:
        return []
    with secure_delete(connection):
        return _leave_tombstones(connection, rows)


def _delete_tombstones(connection: sa.Connection, before: float) -> None:
    rows = connection.execute(sql.OLD_TOMBSTONES, {"before": before, "count": EXPIRE_AT_ONCE}).all()
    connection.execute(sql.DELETE_JOBS, {"seqs": [row.seq for row in rows]})


def _leave_tombstones(connection: sa.Connection, rows: Sequence[sa.Row[*tuple[Any, ...]]]) -> list[str]:
    """Delete all but the tombstones of these jobs (rows of seq and id). Return their request ids."""
    which = {"seqs": [row.seq for row in rows]}
    for statement in (sql.DELETE_PAYLOADS, sql.DELETE_EVENTS, sql.LEAVE_TOMBSTONES):
        connection.execute(statement, which)
    return [row.id for row in rows]

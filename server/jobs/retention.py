"""How long results are kept: until an age, a disk quota, or delivery for owners who asked for no storing.

An expired job leaves a tombstone, so that its request id is answered with 410 (it was here) and not with 404.

Inputs of unfinished jobs are never dropped, so of the disk quota one key's may take its share and no more. When the
quota is used up, results of the owner that has the most there go first, and that owner's submits are refused. All are
refused where twice the quota is used and no old result is left to drop, so that it is a bound.
"""

import collections
import contextlib
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

from server.fal.errors import overloaded
from server.jobs.errors import DatabaseError, log_database_error
from server.jobs.job import NewJob
from server.jobs.store import JobStore
from server.settings import QueueSettings

LOG = logging.getLogger(__name__)

FRESH_S = 600.0  # results younger than this are kept even on a full disk: their owners have yet to fetch them
EXPIRE_AT_ONCE = 200  # jobs expired in one transaction, so that submits wait milliseconds for it, not seconds


class Retention:
    """Expires the jobs of one database. `forgotten` is called with the request ids whose payloads are deleted.

    `chore`: context of what one server at a time does for all.
    """

    def __init__(
        self,
        store: JobStore,
        forgotten: Callable[[Iterable[str]], None],
        settings: QueueSettings,
        *,
        key_share: float = 1.0,
        chore: Callable[[str], AbstractAsyncContextManager[bool]] = lambda name: contextlib.nullcontext(True),  # noqa: FBT003
    ) -> None:
        self._store = store
        self._forgotten = forgotten
        self._settings = settings
        self._key_share = key_share
        self._chore = chore
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
            self._noted(await self._store.wipe_private(request_id))
        except DatabaseError as error:  # wiping writes, too: tried again until there is room
            log_database_error(LOG, "a delivered job could not be wiped", error)
            return
        self._to_forget.discard(request_id)

    async def delete(self, request_id: str) -> None:
        """Wipe an ended job at its owner's wish; its webhook, if still to be delivered, says that nothing is stored.

        Raises `DatabaseError` if that can't be done.
        """
        self._noted(await self._store.wipe(request_id))

    def _noted(self, wiped: list[str]) -> None:
        self._forgotten(wiped)
        self._wiped = self._wiped or wiped != []

    async def keep_quota(self) -> None:
        """Measure the database; while it is over its quota, expire old results. To be called every second.

        Among the old results, those of the owner that has the most go first, oldest first.
        """
        for request_id in list(self._to_forget):
            await self.forget(request_id)
        quota = self._settings.jobs_quota_bytes
        used = await self._store.used_bytes()
        # With less in all, no key can have its share.
        self._inputs = collections.Counter(await self._store.input_bytes() if used > quota * self._key_share else ())
        self.disk_full = used > quota
        if self.disk_full:
            heaviest_first = (self._inputs + collections.Counter(await self._store.result_bytes())).most_common()
            async with self._chore("quota") as mine:
                dropped = not mine or await self._drop_old(owner for owner, _ in heaviest_first)
            self._heaviest = heaviest_first[0][0] if heaviest_first and (dropped or used <= 2 * quota) else None
        if self.disk_full or self._wiped:
            wiped, self._wiped = self._wiped, False
            await self._store.tidy(wiped=wiped)

    async def _drop_old(self, owners: Iterable[str]) -> bool:
        """Expire old results of the first of these owners who has some. Return whether one has."""
        for owner in owners:
            if await self._expire_some(FRESH_S, owner):
                return True
        return False

    async def expire(self) -> None:
        """Expire results by age and delete old tombstones. To be called every half minute."""
        async with self._chore("expire") as mine:
            if mine:
                await self._expire()

    async def _expire(self) -> None:
        while await self._expire_some(self._settings.result_ttl) == EXPIRE_AT_ONCE:
            pass
        await self._store.delete_tombstones(self._settings.tombstone_ttl, EXPIRE_AT_ONCE)
        await self._store.tidy(wiped=False)

    async def _expire_some(self, older_s: float, owner: str | None = None) -> int:
        """Expire the oldest jobs (of one owner) that ended at least `older_s` ago, at most `EXPIRE_AT_ONCE`.

        Return their number.
        """
        expired = await self._store.expire(older_s, EXPIRE_AT_ONCE, owner)
        self._forgotten(expired)
        return len(expired)

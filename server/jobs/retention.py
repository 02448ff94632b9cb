"""How long results stay: by age, by disk quota, and not at all for those whose owner asked for that.

What is let go leaves a tombstone, so that its request id is answered with 410 (it was here) and not with 404.
"""

import logging
import time
from collections.abc import Callable, Iterable

from server.jobs.attic import EXPIRE_AT_ONCE, Attic
from server.jobs.database import DatabaseError, log_database_error
from server.settings import QueueSettings

LOG = logging.getLogger(__name__)

FRESH_S = 600.0  # results younger than this are not dropped for want of disk: their owners are still coming for them


class Retention:
    """`forgotten` is told the request ids of jobs whose payloads have gone."""

    def __init__(
        self,
        attic: Attic,
        forgotten: Callable[[Iterable[str]], None],
        settings: QueueSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._attic = attic
        self._forgotten = forgotten
        self._settings = settings
        self._now = clock
        self._wipe = False
        self._to_forget: set[str] = set()  # those for whose wiping there was no room
        self.disk_full = False

    async def forget(self, request_id: str) -> None:
        """Wipes a job that was delivered and asked for no storing; its webhook, if it has one, must be out first."""
        self._to_forget.add(request_id)
        try:
            wiped = await self._attic.forget(request_id)
        except DatabaseError as error:  # wiping writes, too: tried again until there is room
            log_database_error(LOG, "a delivered job could not be wiped", error)
            return
        self._to_forget.discard(request_id)
        self._forgotten(wiped)
        self._wipe = self._wipe or wiped != []

    async def keep_quota(self) -> None:
        """Looks at the disk, and drops the oldest results while too much of it is used. For every second."""
        for request_id in list(self._to_forget):
            await self.forget(request_id)
        self.disk_full = await self._attic.used_bytes() > self._settings.jobs_quota_bytes
        if self.disk_full:
            self._forgotten(await self._attic.expire(self._now() - FRESH_S))
        if self.disk_full or self._wipe:
            wipe, self._wipe = self._wipe, False
            await self._attic.tidy(empty_log=wipe)

    async def expire(self) -> None:
        """Drops results by age, and tombstones by theirs. For every half minute."""
        now = self._now()
        while expired := await self._attic.expire(now - self._settings.result_ttl):
            self._forgotten(expired)
            if len(expired) < EXPIRE_AT_ONCE:
                break
        await self._attic.forget_tombstones(now - self._settings.tombstone_ttl)
        await self._attic.tidy(empty_log=False)

"""The index as a mirror of a database that one server has for itself: loaded at the start, then told of each commit."""

import contextlib
import logging
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager

from typing_extensions import override

from server.fal.errors import start_timed_out
from server.jobs.errors import DatabaseError
from server.jobs.index import JobIndex
from server.jobs.job import Result, Snapshot
from server.jobs.queue import Follower
from server.jobs.runner import commit
from server.jobs.sqlite.store import SQLiteStore

LOG = logging.getLogger(__name__)


class Mirror(Follower):
    """Keeps `index` and `store` as one, and both in step with the machine's clock."""

    def __init__(self, store: SQLiteStore, index: JobIndex) -> None:
        self._store = store
        self._index = index
        self._now = store.clock

    @override
    async def start(self) -> None:
        for snapshot in await self._store.recover():
            self._index.add(snapshot)

    @override
    async def tick(self) -> Collection[str]:
        if jump := self._now.jump():
            await self._follow_clock(jump)
        if self._index.overdue(self._now()):
            await self._give_up_waiting()
        return ()

    @override
    async def find(self, request_id: str) -> Snapshot | None:
        return await self._store.load(request_id)

    @override
    def chore(self, name: str) -> AbstractAsyncContextManager[bool]:
        return contextlib.nullcontext(enter_result=True)

    async def _follow_clock(self, jump: float) -> None:
        """Move every stored deadline by the seconds that the machine's clock was set by."""
        # The clock before the write, as what is submitted after it is not moved; the index by its commit, as what was
        # submitted before it is.
        self._now.follow(jump)
        try:
            await commit(self._store.move_deadlines(jump), lambda _: self._index.move_deadlines(jump))
        except DatabaseError:
            self._now.follow(-jump)  # again at the next tick
            raise
        LOG.warning(
            "the machine's clock is %+.0f s off its course: it was set, or the machine slept;"
            " what waits for a time was moved with it",
            jump,
        )

    async def _give_up_waiting(self) -> None:
        result = Result.failure(start_timed_out())

        def follow(ended: list[str]) -> None:
            for request_id in ended:
                self._index.finished(request_id, result)

        await commit(self._store.end_overdue(result), follow)

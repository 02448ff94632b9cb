"""What a bucket's files take, by owner: the rules of `ledger`, for items that other servers change too.

A key is a file's name, `parts/NAME/…` for a part of an upload, or `parts/NAME` for all of them; `Names.account` tells
its owner. Parts have a key each, since they come to several servers at once.
"""

import heapq
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from typing_extensions import override

from server.storage.disk import FRESH_S
from server.storage.full import StorageFull
from server.storage.ledger import NOTHING, Ledger, Quota, Size
from server.storage.names import COMMON

# Between two recounts.
RECOUNT_S = 3600.0


class Item(NamedTuple):
    """A file or part that a listing has found. `created`: Unix time."""

    created: float
    key: str
    size: Size


class Usage(Protocol):
    """Counts items, and says whose go when room is short. Safe for many callers at once."""

    @property
    def used(self) -> Size:
        """What is counted, as far as this server knows."""

    async def check(self, key: str, size: Size) -> None:
        """Raise `StorageFull` for an item of this size which would be refused now. Counts nothing."""

    async def reserve(self, key: str, size: Size, *, newest: bool = False) -> list[str]:
        """Count an item, or change its size, and return nothing; or return what has to be deleted first.

        What it returns is counted no more; the caller deletes it and asks again. `newest`: fresh and unfinished items
        of its owner, too, may go for it. Raises `StorageFull`.
        """

    async def forget(self, keys: Collection[str]) -> None:
        """Count these no more."""

    async def excess(self) -> list[str]:
        """Return what has to be deleted to keep the quota, and count it no more."""

    async def recount_is_due(self) -> bool:
        """Return whether it is time for a recount."""

    async def recount(self, pages: AsyncIterator[Sequence[Item]], writing: Callable[[], Collection[str]]) -> None:
        """Count what the pages of a listing have found, and those that are being written, instead of what was."""


# Makes the usage for a quota, from what tells the tag of a name's owner.
MakeUsage: TypeAlias = Callable[[Quota, Callable[[str], bytes]], Usage]


def upload_of(key: str) -> str:
    """Return the key that goes with an item: of a part, that of its whole upload, which is nothing without it."""
    return "/".join(key.split("/")[:2])


class MemoryUsage(Usage):
    """Usage in this process's memory: exact for a server that is alone, as of the last recount for several."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = clock
        self._created: dict[str, float] = {}  # of those which are fresh
        self._counted_at = -RECOUNT_S

    @property
    @override
    def used(self) -> Size:
        return self._ledger.used

    @override
    async def check(self, key: str, size: Size) -> None:
        self._victim(key, size, newest=False)

    @override
    async def reserve(self, key: str, size: Size, *, newest: bool = False) -> list[str]:
        more = size.less(self._ledger.size(key) or NOTHING)
        victim = self._victim(key, more, newest=newest)
        if victim is not None:
            await self.forget([victim])
            return [victim]
        self._ledger.set(key, size)
        self._created[key] = self._now()
        return []

    def _victim(self, key: str, more: Size, *, newest: bool) -> str | None:
        victim = self._ledger.victim(more, key, unfinished=newest)
        if victim is None:
            return None
        spared = victim.own and not newest and victim.key is not None and self._is_fresh(victim.key)
        if victim.key is None or spared or self._ledger.exceeds(more):
            raise StorageFull(by_key=self._ledger.owner(key) != COMMON)
        return upload_of(victim.key)

    def _is_fresh(self, key: str) -> bool:
        return 0 <= self._now() - self._created.get(key, 0.0) < FRESH_S

    @override
    async def forget(self, keys: Collection[str]) -> None:
        for key in keys:
            for each in (key, *self._ledger.below(key)):
                self._ledger.remove(each)
                self._created.pop(each, None)

    @override
    async def excess(self) -> list[str]:
        gone: list[str] = []
        while (victim := self._ledger.victim(NOTHING)) is not None and victim.key and not self._is_fresh(victim.key):
            gone.append(upload_of(victim.key))
            await self.forget(gone[-1:])
        return gone

    @override
    async def recount_is_due(self) -> bool:
        return time.monotonic() - self._counted_at >= RECOUNT_S

    @override
    async def recount(self, pages: AsyncIterator[Sequence[Item]], writing: Callable[[], Collection[str]]) -> None:
        self._ledger.recount()
        # Each list is short, so that no sort keeps the interpreter for long.
        found = [sorted(page) async for page in pages]
        counted = await to_thread(self._ledger.replaced, ((each.key, each.size) for each in heapq.merge(*found)))
        counted.follow(self._ledger, writing())
        self._ledger = counted
        self._created = {
            **{each.key: each.created for page in found for each in page if each.created > self._now() - FRESH_S},
            **{key: made for key, made in self._created.items() if self._is_fresh(key)},
        }
        self._counted_at = time.monotonic()


def in_memory(quota: Quota, account: Callable[[str], bytes]) -> Usage:
    """Return the usage of a server that is alone."""
    return MemoryUsage(Ledger(*quota, account))

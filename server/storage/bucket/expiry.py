"""When objects go: an empty marker for each, in a folder of the hour after its end.

    expires/2026-11-28T07/ab12….jpg          a file and its metadata
    expires/2026-11-28T07/parts/ab12….zip    the parts of an upload, which may be unfinished

A marker is written before what it is of, so that nothing can be forgotten, whoever is killed. Two sweeps at once do no
harm: what is gone is gone.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from server.storage.bucket.objects import Objects

_FOLDER = "expires"
_HOUR_S = 3600
_LAST = datetime.datetime(9999, 12, 31, 23, tzinfo=datetime.UTC).timestamp()
# Objects that are dropped at a time.
_AT_ONCE = 8


class Lock(Protocol):
    """Lets one of several servers do a chore at a time."""

    def __call__(self) -> AbstractAsyncContextManager[bool]:
        """Return the context of the chore; it tells whether this server is the one. It never waits."""


@asynccontextmanager
async def unshared() -> AsyncIterator[bool]:
    """Lock of a server which knows of no other."""
    yield True


def marker(key: str, expires: float) -> str:
    """Return the path of the marker of an item that ends at this Unix time."""
    hour = min(expires // _HOUR_S * _HOUR_S + _HOUR_S, _LAST)
    return f"{_FOLDER}/{datetime.datetime.fromtimestamp(hour, datetime.UTC):%Y-%m-%dT%H}/{key}"


async def due(objects: Objects, now: float) -> AsyncIterator[tuple[Sequence[str], str]]:
    """Yield keys whose hour is over, and the folder of their markers."""
    latest = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H")
    for folder in await objects.folders(_FOLDER):
        if folder.rpartition("/")[2] > latest:
            return
        for page in [page async for page in objects.pages(folder)]:  # all: its caller deletes them
            yield [found.path.removeprefix(f"{folder}/") for found in page], folder


async def for_each(keys: Sequence[str], act: Callable[[str], Awaitable[None]]) -> None:
    """Act on each key, some at a time."""
    for begin in range(0, len(keys), _AT_ONCE):
        await asyncio.gather(*map(act, keys[begin : begin + _AT_ONCE]))

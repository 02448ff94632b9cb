"""Files in an object store, so that any server has them. `paths` says what lies where.

The order is: marker and metadata, then the bytes. A file is there when all are, so nothing rests on conditional puts.
Two servers that get one upload at once both store it, and the later bytes stay. What a kill or a fault leaves is never
seen, and goes with its marker.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from typing_extensions import override

from server.storage.bucket import expiry
from server.storage.bucket.expiry import Lock, unshared
from server.storage.bucket.objects import CHUNK_BYTES, Found, Objects, away
from server.storage.bucket.paths import (
    META_ENDING,
    Record,
    blocks_of,
    full_if_gone,
    part_path,
    parts_of,
    path_of,
    size_of,
    stored_parts,
)
from server.storage.disk import DiskStore
from server.storage.layout import HEAD_BYTES, Meta
from server.storage.ledger import Size, on_disk
from server.storage.names import NAME
from server.storage.store import MissingPart, Store, Stored
from server.storage.usage import Item, Usage

# Parts go a day after the first: no upload URL is valid for as long.
_PARTS_S = 86400.0
# Objects of this size need no turn: a request has that much memory reserved for an upload.
_SMALL_BYTES = 2 << 20
# Larger objects that are stored at once, each of which takes up to three chunks of memory.
_LARGE_AT_ONCE = 4


class Bucket(Store):
    """Stores files as objects.

    `spool`: where uploads wait on this machine. `lock`: one for all servers. `check` raises `SettingsError` for a store
    that can't be used.
    """

    def __init__(
        self,
        objects: Objects,
        spool: DiskStore,
        usage: Usage,
        *,
        ttl_s: float,
        check: Callable[[], Awaitable[None]],
        lock: Lock = unshared,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._objects = objects
        self._spool = spool
        self._usage = usage
        self._ttl_s = ttl_s
        self._check = check
        self._lock = lock
        self._now = clock
        self._writing: set[str] = set()
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    @property
    @override
    def used(self) -> Size:
        return self._usage.used

    @override
    async def start(self) -> None:
        await self._check()

    @override
    async def check(self, draft: Path, announced: int) -> None:
        await asyncio.to_thread(self._spool.check, draft, announced)
        await self._usage.check(draft.name, on_disk(announced))

    # --- writing

    @override
    async def save(self, data: bytes, name: str, meta: Meta, *, seconds: int | None, durable: bool) -> None:
        write = functools.partial(self._objects.put, data=data, durable=durable)
        async with self._objects.within(len(data)):
            await self._write(name, len(data), meta, seconds, write, newest=True)

    @override
    async def put(self, draft: Path, name: str, meta: Meta, *, seconds: int | None) -> None:
        if await self.find(name) is None:
            with full_if_gone():
                size = size_of(draft)
                await self._write(name, size, meta, seconds, functools.partial(self._put, draft, size))

    @override
    async def put_part(self, draft: Path, name: str, number: int, etag: str, limit: int) -> bool:
        with full_if_gone():
            size = size_of(draft)
            before = await stored_parts(self._objects, name)
            kept = [part for (other, _), part in before.items() if other != number]
            if sum(part.size for part in kept) + size > limit:
                return False
            if not before:
                await self._objects.put(expiry.marker(parts_of(name), self._now() + _PARTS_S), b"")
            key, put = part_path(name, number, etag), functools.partial(self._put, draft, size)
            await self._counted(key, size, functools.partial(put, key), before=(number, etag) in before)
            # What this part replaces: never one that came beside it.
            replaced = [part.path for (other, tag), part in before.items() if other == number and tag != etag]
            await expiry.for_each(replaced, self._objects.delete)
            await self._usage.forget(replaced)
        return True

    @override
    async def join(
        self, name: str, etags: Mapping[int, str], describe: Callable[[bytes], Meta], limit: int, *, seconds: int | None
    ) -> bool:
        fits = True
        if await self.find(name) is None:
            found = await stored_parts(self._objects, name)
            missing = next((part[0] for part in sorted(etags.items()) or [(1, "")] if part not in found), None)
            if missing is not None:
                raise MissingPart(missing)
            parts = [found[part] for part in sorted(etags.items())]
            size = sum(part.size for part in parts)
            fits = size <= limit
            if fits:
                with full_if_gone():
                    write = functools.partial(self._join, parts)
                    await self._write(name, size, describe(await self._head(parts)), seconds, write)
        await self._drop(parts_of(name))
        await self._usage.forget([parts_of(name)])
        return fits

    async def _head(self, parts: Sequence[Found]) -> bytes:
        head = b""
        for part in parts:
            head += await self._read(part.path, 0, min(part.size, HEAD_BYTES - len(head)))
        return head

    async def _write(
        self,
        name: str,
        size: int,
        meta: Meta,
        seconds: int | None,
        write: Callable[[str], Awaitable[None]],
        *,
        newest: bool = False,
    ) -> None:
        path, expires = path_of(name), self._now() + (self._ttl_s if seconds is None else seconds)

        async def put() -> None:
            await asyncio.gather(
                self._objects.put(expiry.marker(name, expires), b""),
                self._objects.put(path + META_ENDING, msgspec.json.encode(Record(expires, meta))),
            )
            await write(path)

        await self._counted(name, size, put, newest=newest)

    async def _counted(
        self, key: str, size: int, put: Callable[[], Awaitable[None]], *, newest: bool = False, before: bool = False
    ) -> None:
        """Count an item, then put it; what can't be put counts no more, unless it was there `before`."""
        self._writing.add(key)
        written = before
        try:
            while victims := await self._usage.reserve(key, on_disk(size), newest=newest):
                await expiry.for_each(victims, self._drop)
            await put()
            written = True
        finally:
            self._writing.discard(key)
            if not written:
                await self._usage.forget([key])

    async def _put(self, draft: Path, size: int, path: str) -> None:
        if size <= _SMALL_BYTES:
            await self._objects.put(path, await asyncio.to_thread(draft.read_bytes))
        else:
            await self._put_large(path, blocks_of(draft))

    async def _join(self, parts: Sequence[Found], path: str) -> None:
        async def blocks() -> AsyncIterator[bytes]:
            for part in parts:
                for offset in range(0, part.size, CHUNK_BYTES):
                    yield await self._objects.get(part.path, offset, min(CHUNK_BYTES, part.size - offset))

        await self._put_large(path, blocks())

    async def _put_large(self, path: str, blocks: AsyncIterator[bytes]) -> None:
        async with self._large:
            if self._objects.away_since is not None:  # found out while this one waited
                raise away()
            await self._objects.put_blocks(path, blocks)

    # --- reading and deleting

    @override
    async def find(self, name: str) -> Stored | None:
        if not NAME.fullmatch(name):
            return None
        path = path_of(name)
        try:
            found, record = await asyncio.gather(self._objects.head(path), self._record(path))
        except FileNotFoundError:
            return None
        if record.expires <= self._now():
            return None
        return Stored(name, None, found.size, found.modified, record.expires, record.meta)

    async def _record(self, path: str) -> Record:
        return msgspec.json.decode(await self._objects.get(path + META_ENDING), type=Record)

    @override
    async def read(self, stored: Stored, first: int = 0, size: int | None = None) -> bytes:
        return await self._read(path_of(stored.name), first, stored.size if size is None else size)

    async def _read(self, path: str, first: int, size: int) -> bytes:
        return await self._objects.get(path, first, size) if size else b""  # no store has an empty range

    @override
    async def delete(self, name: str) -> None:
        await self._drop(name)
        await self._usage.forget([name])

    async def _drop(self, key: str) -> None:
        """Delete a file, or all parts of an upload. The marker goes in its time."""
        if "/" not in key:
            await self._objects.delete(path_of(key))
            await self._objects.delete(path_of(key) + META_ENDING)
            return
        for page in [page async for page in self._objects.pages(key)]:  # all, before any goes
            await expiry.for_each([each.path for each in page], self._objects.delete)

    # --- sweeping

    @override
    async def sweep(self) -> None:
        await asyncio.to_thread(self._spool.sweep)
        async with self._lock() as ours:
            if ours:
                async for keys, folder in expiry.due(self._objects, self._now()):
                    await expiry.for_each(keys, functools.partial(self._expire, folder))
                if await self._usage.recount_is_due():
                    await self._usage.recount(self._items(), lambda: self._writing)
        await expiry.for_each(await self._usage.excess(), self._drop)

    async def _expire(self, folder: str, key: str) -> None:
        """Drop what a marker is of. A file that was stored again, with a later end, has another marker."""
        try:
            lives = "/" not in key and (await self._record(path_of(key))).expires > self._now()
        except FileNotFoundError:
            lives = False
        if not lives:
            await self.delete(key)
        await self._objects.delete(f"{folder}/{key}")

    async def _items(self) -> AsyncIterator[list[Item]]:
        async for page in self._objects.pages("parts"):
            yield [Item(found.modified, found.path, on_disk(found.size)) for found in page]
        async for page in self._objects.pages("stored"):
            yield [
                Item(found.modified, found.path.rpartition("/")[2], on_disk(found.size))
                for found in page
                if not found.path.endswith(META_ENDING)
            ]

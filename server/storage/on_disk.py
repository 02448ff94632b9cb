"""Files in the data folder of this machine: `DiskStore` and `Parts`, in threads."""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from typing_extensions import override

from server.storage.disk import DiskStore
from server.storage.layout import Meta
from server.storage.ledger import Size
from server.storage.multipart import Parts
from server.storage.store import MissingPart, Store, Stored
from server.storage.upload_tokens import VALID_S

# Read on the event loop where the page cache has it: a tenth of a millisecond.
_READ_AT_ONCE = 1 << 18
# Not in the page cache; or a file system that can't tell.
_NOT_AT_ONCE = frozenset({errno.EAGAIN, errno.EOPNOTSUPP})


class OnDisk(Store):
    """Stores files on the disk where they were spooled."""

    def __init__(self, disk: DiskStore) -> None:
        self._disk = disk
        self._parts = Parts(disk)

    @property
    @override
    def used(self) -> Size:
        return self._disk.used

    @override
    async def start(self) -> None:
        """Nothing is left to do: the folders are there."""

    @override
    async def check(self, draft: Path, announced: int) -> None:
        await asyncio.to_thread(self._disk.check, draft, announced)

    @override
    async def save(self, data: bytes, name: str, meta: Meta, *, seconds: int | None, durable: bool) -> None:
        await asyncio.to_thread(self._save, data, name, meta, seconds, durable=durable)

    def _save(self, data: bytes, name: str, meta: Meta, seconds: int | None, *, durable: bool) -> None:
        draft = self._disk.draft(name, newest=True)
        try:
            self._disk.take(draft, len(data))
            draft.write_bytes(data)
            self._disk.put(draft, name, meta, seconds=seconds, durable=durable)
        finally:
            self._disk.drop(draft)

    @override
    async def put(self, draft: Path, name: str, meta: Meta, *, seconds: int | None) -> None:
        await asyncio.to_thread(self._disk.put, draft, name, meta, seconds=seconds, durable=True)

    @override
    async def put_part(self, draft: Path, name: str, number: int, etag: str, limit: int) -> bool:
        return await asyncio.to_thread(self._parts.keep, name, number, draft, limit)

    @override
    async def join(
        self, name: str, etags: Mapping[int, str], describe: Callable[[bytes], Meta], limit: int, *, seconds: int | None
    ) -> bool:
        return await asyncio.to_thread(self._join, name, etags, describe, limit, seconds)

    def _join(
        self, name: str, etags: Mapping[int, str], describe: Callable[[bytes], Meta], limit: int, seconds: int | None
    ) -> bool:
        draft = self._disk.draft(name)
        fits = self._parts.size(name, etags) <= limit  # else: an earlier server's limit was larger
        try:
            if fits:
                head = self._parts.join(name, etags, draft)
                self._disk.put(draft, name, describe(head), seconds=seconds, durable=True)
        except MissingPart:
            if not self._disk.find(name):  # else: joined before, and the answer was lost
                raise
        finally:
            self._disk.drop(draft)
        self._parts.drop(name)
        return fits

    @override
    async def find(self, name: str) -> Stored | None:
        return self._disk.find(name)

    @override
    async def read(self, stored: Stored, first: int = 0, size: int | None = None) -> bytes:
        path = cast("Path", stored.path)
        if size is not None:
            return await asyncio.to_thread(_read_piece, path, first, size)
        data = _read_cached(path)
        return await asyncio.to_thread(path.read_bytes) if data is None else data

    @override
    async def delete(self, name: str) -> None:
        await asyncio.to_thread(self._disk.delete, name)

    @override
    async def sweep(self) -> None:
        await asyncio.to_thread(self._parts.drop_before, time.time() - VALID_S)
        await asyncio.to_thread(self._disk.sweep)


def _read_piece(path: Path, first: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(first)
        return file.read(size)


def _read_cached(path: Path) -> bytes | None:
    """Return a small file that the page cache has; None when the disk may be read, which takes a thread.

    A recent upload is in the cache, and a switch to a thread takes longer than the read.
    """
    nowait = getattr(os, "RWF_NOWAIT", None)  # Linux alone has it
    if nowait is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size > _READ_AT_ONCE:
            return None
        data = bytearray(size)
        whole = os.preadv(descriptor, [data], 0, nowait) == size
    except OSError as error:
        if error.errno not in _NOT_AT_ONCE:
            raise
        return None
    finally:
        os.close(descriptor)
    return bytes(data) if whole else None

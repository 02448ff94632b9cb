"""All files of a data folder, into an object store and back: bytes, metadata, end, and parts of open uploads.

What is there already stays, so that a move which was interrupted is made again from its beginning. Quotas don't hold
for it: what was stored stays stored, until a server's own sweep.
"""

import asyncio
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from server.data_dir import read_secret
from server.storage.bucket import expiry
from server.storage.bucket.bucket import Bucket
from server.storage.bucket.objects import CHUNK_BYTES, Objects
from server.storage.bucket.paths import META_ENDING, part_at, part_path
from server.storage.disk import DiskStore
from server.storage.layout import Layout
from server.storage.ledger import Ledger, Size
from server.storage.multipart import Parts, new_digest
from server.storage.names import Names
from server.storage.store import Stored
from server.storage.usage import MemoryUsage

_NO_LIMIT = Size(sys.maxsize, sys.maxsize)


class Part(NamedTuple):
    """A part of an open upload: the file to be, its number, the digest of its bytes, and how many they are."""

    name: str
    number: int
    etag: str
    size: int

    @property
    def path(self) -> str:
        """Its path in the object store."""
        return part_path(self.name, self.number, self.etag)


class There(NamedTuple):
    """What one side has: bytes by name of each stored file, and parts of open uploads."""

    files: dict[str, int]
    parts: list[Part]

    def __len__(self) -> int:
        return len(self.files) + len(self.parts)


class FilesMove:
    """The files in `folder` and in the object store. To be used with the folder's lock held."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        names = Names(read_secret(folder / "upload.secret"))
        self._layout = Layout(folder)
        self._layout.prepare()
        self._disk = DiskStore(folder, names=names, ttl_s=0.0, quota=_NO_LIMIT)
        self._parts = Parts(self._disk)
        usage = MemoryUsage(Ledger(_NO_LIMIT, 1.0, names.account))
        self._bucket = Bucket(objects, self._disk, usage, ttl_s=0.0, check=_unchecked)
        self._objects = objects

    def on_disk(self) -> There:
        """Return what the folder has, the oldest first. Deletes what has expired."""
        files: dict[str, int] = {}
        parts: list[Part] = []
        for key, _ in self._layout.scan(time.time()):
            if key.startswith("parts/"):
                parts += map(_part, sorted(self._layout.path(key).iterdir()))
            elif stored := self._disk.find(key):
                files[key] = stored.size
        return There(files, parts)

    async def in_store(self) -> There:
        """Return what the object store has, also what has expired and is not swept yet."""
        files: dict[str, int] = {}
        parts: list[Part] = []
        async for page in self._objects.pages("stored"):
            files |= {each.path.rpartition("/")[2]: each.size for each in page if not each.path.endswith(META_ENDING)}
        async for page in self._objects.pages("parts"):
            parts += [Part(*part_at(each.path), each.size) for each in page]
        return There(files, parts)

    async def put(self, found: There, done: Callable[[], None]) -> None:
        """Copy what the folder has into the store. `done` is called after each."""
        for part in found.parts:
            file = self._layout.path(f"parts/{part.name}") / str(part.number)
            await self._bucket.put_part(file, part.name, part.number, part.etag, sys.maxsize)
            done()
        await expiry.for_each(list(found.files), functools.partial(self._put, done))

    async def _put(self, done: Callable[[], None], name: str) -> None:
        stored = await asyncio.to_thread(self._disk.find, name)
        if stored is not None and stored.path is not None:  # else it has expired meanwhile
            await self._bucket.put(stored.path, name, stored.meta, seconds=_left(stored))
        done()

    async def get(self, found: There, done: Callable[[], None]) -> There:
        """Copy what the store has into the folder; return what of it was to come. `done` is called after each."""
        files: dict[str, int] = {}
        for name in found.files:
            if (stored := await self._bucket.find(name)) is not None:
                files[name] = stored.size
                await self._get(stored)
            done()
        for part in found.parts:
            await self._get_part(part)
            done()
        return There(files, found.parts)

    async def _get(self, stored: Stored) -> None:
        if self._disk.find(stored.name) is not None:
            return
        draft = self._disk.draft(stored.name)
        try:
            with draft.open("wb") as file:
                for first in range(0, stored.size, CHUNK_BYTES):
                    file.write(await self._bucket.read(stored, first, min(CHUNK_BYTES, stored.size - first)))
            put = functools.partial(self._disk.put, seconds=_left(stored), durable=True)
            await asyncio.to_thread(put, draft, stored.name, stored.meta)
        finally:
            self._disk.drop(draft)

    async def _get_part(self, part: Part) -> None:
        draft = self._disk.draft(part.name)
        try:
            with draft.open("wb") as file:
                for first in range(0, part.size, CHUNK_BYTES):
                    file.write(await self._objects.get(part.path, first, min(CHUNK_BYTES, part.size - first)))
            await asyncio.to_thread(self._parts.keep, part.name, part.number, draft, sys.maxsize)
        finally:
            self._disk.drop(draft)


def missing(wanted: There, there: There) -> Sequence[str]:
    """Return names of what is wanted and not there, or not with as many bytes."""
    parts = {part.path for part in there.parts}
    lost = [name for name, size in wanted.files.items() if there.files.get(name) != size]
    return lost + [part.path for part in wanted.parts if part.path not in parts]


async def _unchecked() -> None:
    """Check nothing: the caller has."""


def _part(file: Path) -> Part:
    digest = new_digest()
    with file.open("rb") as source:
        while block := source.read(CHUNK_BYTES):
            digest.update(block)
    return Part(file.parent.name, int(file.name), digest.hexdigest(), file.stat().st_size)


def _left(stored: Stored) -> int:
    """Return the whole seconds until a file's end, at least one."""
    return max(1, math.ceil(stored.expires - time.time()))

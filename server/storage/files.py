"""Stored files, by name: uploads of clients and results of requests.

Whole uploads and parts of one are streamed to disk as they arrive, never held in memory, and are in the store before
they are acknowledged. `store` says what a store does; `on_disk` is the form for one machine: `disk` does its expiry,
`layout` the folders, `ledger` the quota, `multipart` the parts. `names` has the names, and `upload_tokens` permission
to upload.
"""

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from server.data_dir import read_secret
from server.fal import lifecycle as lifecycles
from server.fal.errors import PlainError, invalid
from server.logs import fault
from server.settings import StorageSettings
from server.storage.disk import DiskStore
from server.storage.full import quota_or_429, room_or_429
from server.storage.layout import HEAD_BYTES, Meta, is_picture
from server.storage.ledger import Size
from server.storage.multipart import MAX_PARTS, new_digest
from server.storage.names import NAME, Names
from server.storage.on_disk import OnDisk
from server.storage.store import MissingPart, Store, Stored
from server.storage.upload_tokens import Upload, UploadTokens, permit

# Size of one write, each of which takes a switch to a thread.
_WRITE_BYTES = 1 << 20
# Most memory of one upload: a block, and the chunks that it is made of.
SPOOL_BYTES = 2 * _WRITE_BYTES
# An expired file is refused at once; its bytes are dropped within this many seconds.
_SWEEP_S = 600.0

_OWN_PATH = re.compile(rf".*/files/({NAME.pattern})")


class _Draft(NamedTuple):
    path: Path
    size: int
    head: bytes
    digest: str


# Makes the store from what spools uploads, and from what tells the owner of a name.
MakeStore: TypeAlias = Callable[[DiskStore, Names], Store]


def _on_disk(disk: DiskStore, _: Names) -> Store:
    return OnDisk(disk)


class Files:
    """The files of one store. `start` before use, `close` at the end. `key_share`: part of the quota for one owner."""

    def __init__(
        self,
        settings: StorageSettings,
        *,
        public_url: str = "",
        key_share: float = 1.0,
        names: Callable[[bytes], Names] = Names,
        store: MakeStore = _on_disk,
        sweep_s: float = _SWEEP_S,
    ) -> None:
        self._settings = settings
        self._own = f"{public_url.rstrip('/')}/cdn/files/" if public_url else None
        secret = read_secret(settings.files_dir / "upload.secret")
        self._names = names(secret)
        self.upload_tokens = UploadTokens(secret)
        self.disk = DiskStore(
            settings.files_dir,
            names=self._names,
            ttl_s=settings.file_ttl,
            quota=Size(settings.files_quota_bytes, settings.max_stored_files),
            share=key_share,
        )
        self._store = store(self.disk, self._names)
        self._sweep_s = sweep_s
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make ready, and start the sweeper. Raises `SettingsError` as `Store.start` does."""
        await asyncio.to_thread(self.disk.prepare)
        await self._store.start()
        self._sweeper = asyncio.create_task(self._sweep(), name="files")

    async def close(self) -> None:
        """Stop the sweeper."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    async def save(
        self, data: bytes, content_type: str, *, lifecycle: str | None = None, owner: str = "", durable: bool = False
    ) -> str:
        """Store a result and return its name. `lifecycle`: the caller's header; `durable`: on disk when this returns.

        Raises `RequestError` 400 for a malformed lifecycle, 429 for a quota that it can't have its room of, `OSError`
        when the disk is full.
        """
        wish = lifecycles.parse(lifecycle)
        name = self._names.new(owner, content_type)
        inline = is_picture(content_type, data[:HEAD_BYTES])
        meta = Meta(content_type, inline=inline, owner=owner, acl=wish.acl)
        with quota_or_429():
            await self._store.save(data, name, meta, seconds=wish.seconds, durable=durable)
        return name

    @property
    def used(self) -> Size:
        """What is counted of the quota."""
        return self._store.used

    async def find(self, name: str) -> Stored | None:
        """Return the file of this name, unless it is missing or expired. Raises `RequestError` 429 as `Store` does."""
        return await self._store.find(name)

    async def local(self, url: str, reader: str | None = None) -> Stored | None:
        """Return the stored file that a URL of ours means, if `reader` may have it; None for any other URL.

        Its name tells it, whatever the host: 128 random bits that we have on disk are ours. Raises `InvalidInput` for
        a file that is larger than a picture may be, and for one of `public_url` that is gone, which would otherwise be
        fetched from ourselves.
        """
        try:
            match = _OWN_PATH.fullmatch(urlsplit(url).path)
        except ValueError:
            return None
        stored = await self._store.find(match[1]) if match else None
        if stored is None or stored.meta.acl.decide(reader, stored.meta.owner) != "allow":
            if self._own and url.startswith(self._own):
                raise invalid("image_url", "file_download_error", "There is no such file")
            return None
        limit = self._settings.max_image_bytes
        if stored.size > limit:
            message = f"The image is larger than {limit} bytes"
            raise invalid("image_url", "file_too_large", message, {"max_size": limit})
        return stored

    async def read(self, stored: Stored, first: int = 0, size: int | None = None) -> bytes:
        """Return `size` bytes from offset `first`, or all. Raises `FileNotFoundError` when it has expired meanwhile."""
        return await self._store.read(stored, first, size)

    async def delete(self, url: str) -> None:
        """Delete the stored file that a URL of ours means, if it is there."""
        if match := _OWN_PATH.fullmatch(urlsplit(url).path):
            await self._store.delete(match[1])

    # --- uploads ---

    def permit(self, content_type: str, file_name: str, owner: str, lifecycle: lifecycles.Lifecycle) -> Upload:
        """Return a new upload of this owner."""
        return permit(self._names, content_type, file_name, owner, lifecycle)

    async def receive(self, upload: Upload, chunks: AsyncIterator[bytes], announced: int | None) -> None:
        """Store an upload's whole body. An existing file of that name stays: the client has sent it twice.

        Raises `PlainError` 413 when it is too large, `RequestError` 429 when there is no room.
        """
        async with self._spooled(upload, chunks, announced) as draft:
            meta = _described(upload, draft.head)
            await self._store.put(draft.path, upload.name, meta, seconds=upload.lifecycle.seconds)

    async def receive_part(
        self, upload: Upload, number: int, chunks: AsyncIterator[bytes], announced: int | None
    ) -> str:
        """Store one part of an upload and return its etag, a hex digest. Raises as `receive` does, and 400."""
        if not 1 <= number <= MAX_PARTS:
            raise PlainError(400, f"Part numbers go from 1 to {MAX_PARTS}")
        async with self._spooled(upload, chunks, announced) as draft:
            limit = self._settings.max_upload_bytes
            if not await self._store.put_part(draft.path, upload.name, number, draft.digest, limit):
                raise self._too_large()
        return draft.digest

    async def complete(self, upload: Upload, etags: Mapping[int, str]) -> None:
        """Assemble an upload from its parts. Doing so again changes nothing.

        Raises `PlainError` 400 for a missing part, 413 when all together are too large, `RequestError` 429 when there
        is no room for both.
        """
        describe, limit = functools.partial(_described, upload), self._settings.max_upload_bytes
        try:
            with room_or_429():
                joined = await self._store.join(upload.name, etags, describe, limit, seconds=upload.lifecycle.seconds)
        except MissingPart as error:
            raise PlainError(400, f"Part {error.number} was not uploaded, or has another etag") from None
        if not joined:
            raise self._too_large()

    @contextlib.asynccontextmanager
    async def _spooled(
        self, upload: Upload, chunks: AsyncIterator[bytes], announced: int | None
    ) -> AsyncIterator[_Draft]:
        """Write the body to a draft, which is dropped afterwards unless it was renamed.

        Each block is counted before it is written: nothing may have been announced, and others upload meanwhile.
        """
        if announced is not None and announced > self._settings.max_upload_bytes:
            raise self._too_large()
        path = self.disk.draft(upload.name)
        try:
            with room_or_429():
                await self._store.check(path, announced or 0)
                with path.open("wb") as file:
                    yield await self._spool(path, file, chunks)
        finally:
            self.disk.drop(path)

    async def _spool(self, path: Path, file: BinaryIO, chunks: AsyncIterator[bytes]) -> _Draft:
        size, head, digest = 0, b"", new_digest()

        def write(data: bytes) -> None:
            self.disk.take(path, len(data))
            file.write(data)
            digest.update(data)

        async for block in _gathered(chunks):
            size += len(block)
            if size > self._settings.max_upload_bytes:
                raise self._too_large()
            head = head or block[:HEAD_BYTES]
            await asyncio.to_thread(write, block)
        await asyncio.to_thread(file.flush)
        return _Draft(path, size, head, digest.hexdigest())

    def _too_large(self) -> PlainError:
        return PlainError(413, f"The file is larger than {self._settings.max_upload_bytes} bytes")

    # --- expiry ---

    async def _sweep(self) -> None:
        while True:
            try:
                await self._store.sweep()
            except Exception as error:  # noqa: BLE001 - without this task the disk fills up
                fault("stored files could not be swept", error)
            await asyncio.sleep(self._sweep_s)


def _described(upload: Upload, head: bytes) -> Meta:
    """Return the metadata of an upload whose file begins with these `HEAD_BYTES`."""
    inline = is_picture(upload.content_type, head)
    file_name = "" if inline else upload.file_name
    return Meta(upload.content_type, inline=inline, file_name=file_name, owner=upload.owner, acl=upload.lifecycle.acl)


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in fewer, larger blocks."""
    gathered: list[bytes] = []
    size = 0
    async for chunk in chunks:
        gathered.append(chunk)
        size += len(chunk)
        if size >= _WRITE_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)

"""The object store, each call within a deadline, and its faults turned into what callers are told.

A store that refuses, fails, is full or says nothing is *away*: each call raises the 429 after which clients try again.
Paths are relative to the store's prefix. No fault's text is passed on: it has the names of files.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from server.fal.errors import FalError, RequestError, overloaded
from server.storage.layout import sync

LOG = logging.getLogger(__name__)

# Seconds that a call may take beside what it carries; an answer that is to come within three has some left.
PATIENCE_S = 2.0
# Bytes a second that an object store moves at least.
_SLOWEST = 8 << 20
# What one request carries of a large object: the least that a part of S3 may have.
CHUNK_BYTES = 5 << 20
_PAGE = 1000

_STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]+)")
OS_ERROR = re.compile(r"\(os error (\d+)\)")


class Found(NamedTuple):
    """An object of a listing. `modified`: Unix time."""

    path: str
    size: int
    modified: float


class Objects:
    """Objects by path. `folder`: where they are files, which are synced to disk. `patience_s`: see `PATIENCE_S`."""

    def __init__(self, store: ObjectStore, *, folder: Path | None = None, patience_s: float = PATIENCE_S) -> None:
        self.store = store
        self._folder = folder
        self.patience_s = patience_s
        self.away_since: float | None = None  # Unix time
        # Of its own: where a mount hangs, so do its threads.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="files") if folder else None

    async def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Store an object. `durable`: it outlives a power cut when this returns."""
        async with self.within(len(data)):
            await obstore.put_async(self.store, path, data, use_multipart=False)
            if durable:
                await self._sync(path)

    async def put_blocks(self, path: str, blocks: AsyncIterator[bytes]) -> None:
        """Store a large object from its blocks, for good. Each has a deadline of its own; a fault of theirs is raised.

        In memory are two chunks. Nothing of what was begun is seen; a bucket's rules drop it.
        """
        async with self.within(CHUNK_BYTES) as limit:

            async def watched() -> AsyncIterator[bytes]:
                async for block in blocks:
                    limit.reschedule(asyncio.get_running_loop().time() + self._seconds(CHUNK_BYTES))
                    yield block

            await obstore.put_async(self.store, path, watched(), chunk_size=CHUNK_BYTES, max_concurrency=1)
            await self._sync(path)

    async def get(self, path: str, first: int = 0, size: int | None = None) -> bytes:
        """Return an object, or `size` bytes of it. Raises `FileNotFoundError`."""
        async with self.within(size or 0):
            if size is not None:
                return bytes(await obstore.get_range_async(self.store, path, start=first, length=size))
            return bytes(await (await obstore.get_async(self.store, path)).bytes_async())

    async def head(self, path: str) -> Found:
        """Return what is known of an object. Raises `FileNotFoundError`."""
        async with self.within():
            meta = await obstore.head_async(self.store, path)
        return Found(path, meta["size"], meta["last_modified"].timestamp())

    async def delete(self, path: str) -> None:
        """Delete an object, if it is there, and what a kill has left of one that was being written."""
        with contextlib.suppress(FileNotFoundError):
            async with self.within():
                if self._folder:
                    await self._run(_unlink_unfinished, self._folder / path)
                await obstore.delete_async(self.store, path)

    async def pages(self, folder: str) -> AsyncIterator[list[Found]]:
        """Yield what lies below a folder, in lists of at most a thousand; less where others delete meanwhile."""
        pages = aiter(obstore.list(self.store, folder, chunk_size=_PAGE))
        while True:
            try:
                async with self.within():
                    page = await anext(pages)
            except (StopAsyncIteration, FileNotFoundError):  # a folder of files may go with its last one
                return
            yield [Found(each["path"], each["size"], each["last_modified"].timestamp()) for each in page]

    async def folders(self, folder: str) -> list[str]:
        """Return the paths of the folders in a folder, in order."""
        async with self.within():
            return sorted((await obstore.list_with_delimiter_async(self.store, folder))["common_prefixes"])

    @contextlib.asynccontextmanager
    async def within(self, size: int = 0) -> AsyncIterator[asyncio.Timeout]:
        """Context of calls that carry `size` bytes together. Raises `RequestError` 429 where the store is away."""
        try:
            async with asyncio.timeout(self._seconds(size)) as limit:
                yield limit
        except TimeoutError:
            raise self._away(f"no answer within {self._seconds(size):.1f} s") from None
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._away("the bucket is gone") from None
            raise
        except FalError:
            raise
        except (BaseError, PermissionError, NotImplementedError, OSError) as error:
            raise self._away(reason(error)) from None
        if self.away_since is not None:
            LOG.warning("the file store is back, after %.0f s", time.time() - self.away_since)
            self.away_since = None

    def _seconds(self, size: int) -> float:
        return self.patience_s + size / _SLOWEST

    def _away(self, why: str) -> RequestError:
        if self.away_since is None:
            self.away_since = time.time()
            LOG.warning("the file store is away: %s. Uploads and file results get 429 until it is back", why)
        return away()

    async def _sync(self, path: str) -> None:
        """Have the disk write a file and its folders, where objects are files."""
        if self._folder is None:
            return
        await self._run(_sync_whole, self._folder / path)

    async def _run(self, act: Callable[[Path], None], file: Path) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, act, file)


def _sync_whole(file: Path) -> None:
    for each in (file, *file.parents[:2]):
        sync(each)


def _unlink_unfinished(file: Path) -> None:
    file.with_name(f"{file.name}#1").unlink(missing_ok=True)


def away() -> RequestError:
    """Return the error for a store that is away."""
    return overloaded("The file store can't be reached at present; try again later")


def reason(error: Exception) -> str:
    """Return why a call failed, without paths or names."""
    text = str(error)
    if status := _STATUS.search(text):
        return f"it answered {status[1].strip()}"
    if number := OS_ERROR.search(text):
        return os.strerror(int(number[1]))
    return "it can't be reached" if "HTTP error" in text else f"its client failed ({type(error).__name__})"

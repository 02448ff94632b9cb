"""What lies where in the object store, beside the markers of `expiry`; and the drafts that become objects.

stored/ab/ab12….jpg              the bytes
stored/ab/ab12….jpg.meta.json    `Record`
parts/ab12….zip/00001-89ab…      a part of an upload: its number, and the digest of its bytes
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from server.storage.bucket.objects import Found, Objects
from server.storage.full import StorageFull
from server.storage.layout import Meta

META_ENDING = ".meta.json"
_READ_BYTES = 1 << 20


class Record(msgspec.Struct, frozen=True):
    """What is said of a file. `expires`: Unix time."""

    expires: float
    meta: Meta


def path_of(name: str) -> str:
    """Return the path of a file's bytes."""
    return f"stored/{name[:2]}/{name}"


def parts_of(name: str) -> str:
    """Return the folder of an upload's parts."""
    return f"parts/{name}"


def part_path(name: str, number: int, etag: str) -> str:
    """Return the path of a part of an upload, which is counted by it, too."""
    return f"{parts_of(name)}/{number:05}-{etag}"


def part_at(path: str) -> tuple[str, int, str]:
    """Return the name, number and etag of the part at a path."""
    _, name, last = path.split("/")
    number, _, etag = last.partition("-")
    return name, int(number), etag


async def stored_parts(objects: Objects, name: str) -> dict[tuple[int, str], Found]:
    """Return the parts of an upload that are stored, by number and etag."""
    found = {}
    async for page in objects.pages(parts_of(name)):
        for each in page:
            _, number, etag = part_at(each.path)
            found[number, etag] = each
    return found


def size_of(draft: Path) -> int:
    """Return the bytes of a spooled file."""
    return draft.stat().st_size


async def blocks_of(draft: Path) -> AsyncIterator[bytes]:
    """Yield a spooled file."""
    with draft.open("rb") as file:
        while block := await asyncio.to_thread(file.read, _READ_BYTES):
            yield block


@contextlib.contextmanager
def full_if_gone() -> Iterator[None]:
    """Turn the loss of a draft, or a part, that had to go for others into `StorageFull`."""
    try:
        yield
    except FileNotFoundError:
        raise StorageFull from None

"""What `Files` needs of the place where files lie; `on_disk` is its form on one machine.

In both a file appears whole or not at all, its `Meta` before it, and the first of a name stays. Uploads are spooled to
a draft on this machine's disk first, whatever the form.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from server.storage.layout import Meta
from server.storage.ledger import Size


class Stored(NamedTuple):
    """A stored file. `created` and `expires` are Unix times; `path` is None for one that this machine's disk lacks."""

    name: str
    path: Path | None
    size: int
    created: float
    expires: float
    meta: Meta


class MissingPart(Exception):
    """A listed part is not stored, or the list is empty (`number` 1)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Store(Protocol):
    """Stores files by name. `seconds`: lifetime; None for the default.

    Whatever stores raises `StorageFull` without room, and `OSError` for a disk that fails. All of a bucket raises
    `RequestError` 429 while it can't be reached.
    """

    @property
    def used(self) -> Size:
        """What is counted of the quota."""

    async def start(self) -> None:
        """Make ready. Raises `SettingsError` where files can't be stored and the operator has to change that."""

    async def check(self, draft: Path, announced: int) -> None:
        """Raise `StorageFull` for an upload of this size which would be refused now. Reserves nothing."""

    async def save(self, data: bytes, name: str, meta: Meta, *, seconds: int | None, durable: bool) -> None:
        """Store a result under a new name. `durable`: it outlives a power cut when this returns."""

    async def put(self, draft: Path, name: str, meta: Meta, *, seconds: int | None) -> None:
        """Store a spooled upload for good; an existing file stays."""

    async def put_part(self, draft: Path, name: str, number: int, etag: str, limit: int) -> bool:
        """Store a spooled part, whose digest is `etag`; False when all together would be larger than `limit` bytes."""

    async def join(
        self, name: str, etags: Mapping[int, str], describe: Callable[[bytes], Meta], limit: int, *, seconds: int | None
    ) -> bool:
        """Store the listed parts as one file, and drop all; nothing if that was done. Raises `MissingPart`.

        False, and all are dropped, when the file would be larger than `limit` bytes: servers may get parts at once, and
        each of them sees only those before. `describe` makes the metadata from the file's first `HEAD_BYTES`.
        """

    async def find(self, name: str) -> Stored | None:
        """Return the file of this name, unless it is missing or expired."""

    async def read(self, stored: Stored, first: int = 0, size: int | None = None) -> bytes:
        """Return `size` bytes of a file from offset `first`, or all. Raises `FileNotFoundError` when it has gone."""

    async def delete(self, name: str) -> None:
        """Delete a file for good, if it is there."""

    async def sweep(self) -> None:
        """Drop what has expired and what was never finished, then what is beyond the quota."""

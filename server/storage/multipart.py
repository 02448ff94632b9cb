"""Multipart uploads: each part is stored under its number until the file is assembled.

Parts arrive in any order, several at once, and again after a lost answer: the last of a number takes the place of those
before. Its etag is the digest of its bytes; a client lists the parts, and the etags, that it means. Blocking.
"""

import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from server.storage.disk import DiskStore
from server.storage.full import StorageFull
from server.storage.layout import HEAD_BYTES, sizes
from server.storage.ledger import NOTHING, on_disk
from server.storage.store import MissingPart

MAX_PARTS = 10_000

# Makes etags.
new_digest = functools.partial(hashlib.blake2b, digest_size=16)

_COPY_BYTES = 1 << 20


class Parts:
    """The parts of uploads, by the name of the file to be. They count as used by the `DiskStore`."""

    def __init__(self, disk: DiskStore) -> None:
        self._disk = disk
        self._folder = disk.parts
        self._totals: dict[str, int] = {}  # bytes, of the uploads to which parts have come since the start
        # A client that lost an answer may send a part again while its upload is being put together, and so dropped.
        self._changing = threading.Lock()

    def keep(self, name: str, number: int, draft: Path, limit: int) -> bool:
        """Store a part; return False when all of them together would be larger than `limit`.

        Raises `StorageFull` when it had to go for others.
        """
        try:
            with self._changing:
                return self._keep(name, number, draft, limit)
        except FileNotFoundError:  # the draft, or the parts before it, had to go
            raise StorageFull from None

    def _keep(self, name: str, number: int, draft: Path, limit: int) -> bool:
        folder = self._folder / name
        place = folder / str(number)
        size = draft.stat().st_size
        if not folder.exists():  # none came before, or they had to go for others
            folder.mkdir(mode=0o700)
            self._totals[name] = 0
        if name not in self._totals:
            self._totals[name] = sum(sizes(folder))
        replaced = place.stat().st_size if place.exists() else None
        total = self._totals[name] + size - (replaced or 0)
        if total > limit:
            return False
        self._disk.put_part(draft, place, NOTHING if replaced is None else on_disk(replaced))
        self._totals[name] = total
        return True

    def size(self, name: str, numbers: Iterable[int]) -> int:
        """Return the bytes of these parts together; of one that is not there none."""
        return sum(place.stat().st_size for number in numbers if (place := self._folder / name / str(number)).exists())

    def join(self, name: str, etags: Mapping[int, str], draft: Path) -> bytes:
        """Write the parts, in the order of their numbers, to `draft`; return its first `HEAD_BYTES`.

        Raises `MissingPart`, `StorageFull`.
        """
        with draft.open("w+b") as whole:
            for number, etag in sorted(etags.items()) or [(1, "")]:
                digest = new_digest()
                try:
                    source = (self._folder / name / str(number)).open("rb")
                except FileNotFoundError:
                    raise MissingPart(number) from None
                with source:
                    while block := source.read(_COPY_BYTES):
                        self._disk.take(draft, len(block))
                        whole.write(block)
                        digest.update(block)
                if digest.hexdigest() != etag:
                    raise MissingPart(number)
            whole.seek(0)
            return whole.read(HEAD_BYTES)

    def drop(self, name: str) -> None:
        """Drop all parts of an upload."""
        with self._changing:
            self._totals.pop(name, None)
            self._disk.drop_parts(name)

    def drop_before(self, time: float) -> None:
        """Drop the parts of uploads to which nothing has been added since, and what is known of those that are gone."""
        for folder in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # put together meanwhile
                if folder.stat().st_mtime < time:
                    self.drop(folder.name)
        with self._changing:
            left = {folder.name for folder in self._folder.iterdir()}
            self._totals = {name: total for name, total in self._totals.items() if name in left}

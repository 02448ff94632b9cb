"""Uploads that come in parts, each kept under its number and the digest of its bytes until they are put together.

Parts arrive in any order, several at once, and again after a lost answer; a client lists those that it means. Blocking.
"""

import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from server.shelf import Shelf

MAX_PARTS = 10_000

_ETAG = re.compile(r"[0-9a-f]{32}")
_COPY_BYTES = 1 << 20


class MissingPart(Exception):
    """A part that is listed is not here, or the list is empty (`number` 1)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Parts:
    """The parts of uploads, by the name of the file to be. They count as used on the shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._folder = shelf.parts
        # A client that lost an answer may send a part again while its upload is being put together, and so dropped.
        self._changing = threading.Lock()

    def keep(self, name: str, number: int, etag: str, draft: Path, limit: int) -> bool:
        """Keep a part; False when all of them together would be larger than `limit`."""
        folder = self._folder / name
        with self._changing:
            folder.mkdir(exist_ok=True, mode=0o700)
            others = (part for part in folder.iterdir() if part.name.partition("-")[0] != str(number))
            size = draft.stat().st_size
            if sum(part.stat().st_size for part in others) + size > limit:
                return False
            draft.rename(folder / f"{number}-{etag}")
        self._shelf.grow(size)
        return True

    def join(self, name: str, etags: Mapping[int, str], draft: Path) -> None:
        """Write the parts, in the order of their numbers, to `draft`. Raises `MissingPart`."""
        folder = self._folder / name
        with draft.open("wb") as whole:
            for number, etag in sorted(etags.items()) or [(1, "")]:
                if not _ETAG.fullmatch(etag):
                    raise MissingPart(number)
                try:
                    with (folder / f"{number}-{etag}").open("rb") as source:
                        shutil.copyfileobj(source, whole, _COPY_BYTES)
                except FileNotFoundError:
                    raise MissingPart(number) from None

    def drop(self, name: str) -> None:
        """Drop all parts of an upload."""
        with self._changing:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def drop_before(self, time: float) -> None:
        """Drop the parts of uploads to which nothing has been added since."""
        for folder in self._folder.iterdir():
            if folder.stat().st_mtime < time:
                self.drop(folder.name)

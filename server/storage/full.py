"""A full disk or a used-up quota: the errors, and what callers are told."""

import contextlib
import errno
from collections.abc import Iterator

from server.fal.errors import overloaded

# Errors of a full disk, or of a used-up quota of its user.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class StorageFull(Exception):
    """The quota is used up by files that may not be dropped. `by_key`: by those of the asking key itself."""

    def __init__(self, *, by_key: bool = False) -> None:
        super().__init__()
        self.by_key = by_key


@contextlib.contextmanager
def room_or_429() -> Iterator[None]:
    """Turn a full disk or quota into a 429, after which clients try again."""
    try:
        with quota_or_429():
            yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise overloaded("The disk is full; try again later") from error


@contextlib.contextmanager
def quota_or_429() -> Iterator[None]:
    """Turn a used-up quota into a 429."""
    try:
        yield
    except StorageFull as full:
        if full.by_key:
            raise overloaded("This key's stored files are at its share; try again later") from None
        raise overloaded("The file storage is full; try again later") from None

"""What each owner has on disk, in memory: bytes and files as the disk counts them, and what goes when room is short.

Everything stored or unfinished (uploads on their way, parts of one) is an item with a key, which tells its owner. An
item counts whole blocks, and its metadata file. Room is short when the bytes or the files of all together would exceed
the quota. *Share*: what one key may take of that quota when others want it; it may have more while there is room.

    who asks for room                       what goes, oldest first                            refused
    a key that would be above its share     its own files, none younger than `FRESH_S`         it, if there are none
    a key that would be the heaviest        as above                                           as above
    any other key, also with its share      the heaviest owner's files, fresh ones too, then   no
      not used up by far                    its unfinished uploads
    a result, instead of an upload          as above, and of its own files fresh ones too,     no: the work is done,
                                            then its own unfinished uploads                    the newest picture stays
    without keys                            one owner, no share: the second line               as in the second line

So who has less than another is never refused, whatever that other does; files of unknown owner (of version 0.1) are
one owner's. Not thread-safe: `DiskStore` has the lock.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from server.storage.names import COMMON

# Of all common file systems; a file or folder takes at least one.
BLOCK_BYTES = 4096


class Size(NamedTuple):
    """An amount of disk."""

    bytes: int
    files: int

    def less(self, other: "Size") -> "Size":
        """Return what is left of it without `other`, at least zero."""
        return Size(max(0, self.bytes - other.bytes), max(0, self.files - other.files))

    def plus(self, other: "Size") -> "Size":
        """Return both together."""
        return Size(self.bytes + other.bytes, self.files + other.files)


NOTHING = Size(0, 0)


class Quota(NamedTuple):
    """What all together may have. `share`: part of it that one owner may take when others want it."""

    size: Size
    share: float

    def short(self, wanted: Size) -> int | None:
        """Return of what there is too little for so much: 0 for bytes, 1 for files, None for nothing."""
        return next((which for which in range(2) if wanted[which] > self.size[which]), None)

    def gives_own(self, which: int, owner: bytes, mine: int, heaviest: int) -> bool:
        """Return whether room for an owner who would have `mine` is made of his own; else of the heaviest one's."""
        within_share = owner == COMMON or mine <= self.share * self.size[which]
        return not within_share or mine >= heaviest


@functools.lru_cache(4096)  # one object for all files of as many blocks: a server has a hundred thousand
def _blocks(blocks: int, files: int) -> Size:
    return Size(blocks * BLOCK_BYTES, files)


def on_disk(size: int, *, meta: bool = False) -> Size:
    """Return what a file of `size` bytes takes; `meta`: with a metadata file."""
    return _blocks(max(1, -(-size // BLOCK_BYTES)) + meta, 1 + meta)


def named_in(key: str) -> str:
    """Return the name in the key of an item."""
    return key.partition("/")[2].partition("/")[0] or key


class Victim(NamedTuple):
    """What must go for somebody's room: the item's key, None if there is none; `own`: it is the asker's."""

    key: str | None
    own: bool


class _Account:
    """One owner's items, oldest first."""

    def __init__(self) -> None:
        self.used = NOTHING
        self.stored: dict[str, Size] = {}
        self.unfinished: dict[str, Size] = {}

    def items(self, key: str) -> dict[str, Size]:
        return self.unfinished if "/" in key else self.stored


_NOBODY = (COMMON, _Account())


class Ledger:
    """The items of all owners. A key is a stored file's name, or `folder/name…` of what is unfinished.

    `share`: see `Quota`. `account`: tag of the owner, by name.
    """

    def __init__(self, quota: Size, share: float, account: Callable[[str], bytes]) -> None:
        self._quota = Quota(quota, share)
        self._read = account
        self._account = functools.lru_cache(1024)(account)  # each item is looked up several times while it is written
        self._accounts: dict[bytes, _Account] = {}
        self._changed: dict[str, None] | None = None  # in order
        self.used = NOTHING

    def owner(self, key: str) -> bytes:
        """Return the tag of an item's owner."""
        return self._account(named_in(key))

    def size(self, key: str) -> Size | None:
        """Return an item's size; None if there is no such item."""
        account = self._accounts.get(self.owner(key))
        return account.items(key).get(key) if account else None

    def set(self, key: str, size: Size) -> None:
        """Add an item as the newest, or change its size."""
        account = self._accounts.setdefault(self.owner(key), _Account())
        items = account.items(key)
        before = items.get(key, NOTHING)
        items[key] = size
        account.used = account.used.plus(size).less(before)
        self.used = self.used.plus(size).less(before)
        if self._changed is not None:
            self._changed[key] = None

    def remove(self, key: str) -> None:
        """Remove an item, if it is there."""
        self.set(key, NOTHING)  # also one that is not known yet: a scan may have seen it
        owner = self.owner(key)
        account = self._accounts[owner]
        del account.items(key)[key]
        if not account.stored and not account.unfinished:
            del self._accounts[owner]

    def victim(self, more: Size, key: str | None = None, *, unfinished: bool = False) -> Victim | None:
        """Return what goes first for `more` of the item `key`, or to keep the quota; None if there is room.

        `unfinished`: after the stored files of its owner, his other unfinished ones may go.
        """
        wanted = self.used.plus(more)
        short = self._quota.short(wanted)
        if short is None:
            return None
        heaviest = max(self._accounts.items(), key=lambda item: (item[1].used[short], item[0]), default=_NOBODY)
        owner = heaviest[0] if key is None else self.owner(key)
        own = self._accounts.get(owner, _Account())
        mine = own.used[short] + more[short]
        if self._quota.gives_own(short, owner, mine, heaviest[1].used[short]):
            of = own.stored or (own.unfinished if unfinished else {})
            return Victim(next((item for item in of if item != key), None), own=True)
        of = heaviest[1].stored or heaviest[1].unfinished
        return Victim(next(iter(of)), own=False)

    def below(self, folder: str) -> list[str]:
        """Return the unfinished items whose keys go on after `folder/`."""
        account = self._accounts.get(self.owner(folder), _Account())
        return [key for key in account.unfinished if key.startswith(f"{folder}/")]

    def exceeds(self, more: Size) -> bool:
        """Return whether so much is more than the whole quota."""
        return self._quota.short(more) is not None

    # --- counting anew

    def recount(self) -> None:
        """Begin to note what changes, for `replaced`."""
        self._changed = {}

    def replaced(self, found: Iterable[tuple[str, Size]]) -> "Ledger":
        """Return a ledger of the stored files that were found since `recount`, oldest first."""
        ledger = Ledger(*self._quota, self._read)
        for key, size in found:
            ledger.set(key, size)
        return ledger

    def follow(self, earlier: "Ledger", also: Iterable[str]) -> None:
        """Take over from an earlier ledger what has changed since its `recount`, and the items `also`."""
        for key in [*(earlier._changed or ()), *also]:
            self.remove(key)
            if size := earlier.size(key):
                self.set(key, size)

"""Files on disk under unguessable names, with expiry and quota, in the folders of `layout`.

`names` has how a name tells the owner; `ledger`, who is refused and whose files go when the quota is used up. A file
appears whole or not at all (rename), its `Meta` always before it. Blocking; callers use threads.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from server.storage.full import StorageFull
from server.storage.layout import Layout, Meta, implied, read_meta, sync
from server.storage.ledger import NOTHING, Ledger, Size, on_disk
from server.storage.names import COMMON, NAME, Names
from server.storage.store import Stored

T = TypeVar("T")

# Files younger than this are not dropped for an upload of their own owner: they have not been fetched yet. One of the
# future is of a clock that was wrong, and not young.
FRESH_S = 3600.0
# Before a refusal the disk is scanned for expired files, at most this often.
_LOOK_AGAIN_S = 60.0


class _Draft(NamedTuple):
    """An incomplete file: its key in the ledger, and whether its owner's fresh and unfinished files may go for it."""

    key: str
    newest: bool


class DiskStore:
    """Stores files. `ttl_s`: lifetime of files without one of their own. `quota`, `share`: see `Ledger`."""

    def __init__(
        self,
        root: Path,
        *,
        names: Names,
        ttl_s: float,
        quota: Size,
        share: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = Layout(root)
        self.parts = self._layout.parts
        self.prepare = self._layout.prepare
        self._ttl_s = ttl_s
        self._now = clock
        self._lock = threading.Lock()
        self._ledger = Ledger(quota, share, names.account)
        self._drafts: dict[Path, _Draft] = {}
        self._sweeping = threading.Lock()
        self._swept_at = -_LOOK_AGAIN_S

    @property
    def used(self) -> Size:
        """What is counted of the quota: nothing of earlier servers before the first `sweep`."""
        return self._ledger.used

    # --- incomplete files

    def draft(self, name: str, *, newest: bool = False) -> Path:
        """Return the path for writing a file that is to be `put` under `name`; `drop` it in the end.

        `newest`: fresh and unfinished files of its owner, too, may go for it.
        """
        draft = _Draft(f"incoming/{name}-{secrets.token_hex(8)}", newest)
        path = self._layout.path(draft.key)
        with self._lock:
            self._drafts[path] = draft
            self._ledger.set(draft.key, NOTHING)
        return path

    def check(self, draft: Path, announced: int) -> None:
        """Raise `StorageFull` for a draft of this size which would be refused now. Reserves nothing."""

        def ask() -> None:
            with self._lock:
                self._victim(draft, on_disk(announced))

        self._after_sweep(ask)

    def take(self, draft: Path, size: int) -> None:
        """Reserve `size` more bytes for a draft. Raises `StorageFull`, also when it had to go for others."""
        more, reserved = on_disk(size), self._reserved(draft)
        self._reserve(draft, Size(more.bytes, more.files - reserved.files))

    def fit(self, draft: Path, size: Size) -> None:
        """Reserve what a draft lacks of `size`. Raises `StorageFull`."""
        self._reserve(draft, size.less(self._reserved(draft)))

    def drop(self, draft: Path) -> None:
        """Drop a draft, if it has not been renamed."""
        draft.unlink(missing_ok=True)
        with self._lock:
            self._settle(draft)

    def put(self, draft: Path, name: str, meta: Meta, *, seconds: int | None = None, durable: bool) -> None:
        """Give the draft its name; an existing file stays. `durable`: on disk when this returns.

        Raises `StorageFull` when it had to go for others, or there is no room for its metadata.
        """
        path = self._layout.path(name)
        if path.exists():
            self.drop(draft)
            return
        try:
            self._put(draft, path, meta, seconds, durable=durable)
        except FileNotFoundError:
            self._reserved(draft)  # raises `StorageFull` if it had to go
            raise

    def _put(self, draft: Path, path: Path, meta: Meta, seconds: int | None, *, durable: bool) -> None:
        described = meta != implied(path.name, meta.owner)
        size = on_disk(draft.stat().st_size, meta=described)
        self.fit(draft, size)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # A reader must not find a private file without the metadata that says so, nor after a power cut.
        if described:
            self._layout.write_meta(path, meta)
            durable = True
        if durable:
            sync(draft)
        now = self._now()
        os.utime(draft, (now, now + (self._ttl_s if seconds is None else seconds)))
        with self._lock:
            self._asker(draft)  # raises if it had to go
            draft.rename(path)
            self._settle(draft)
            self._ledger.set(path.name, size)
        if durable:
            sync(path.parent)

    def put_part(self, draft: Path, place: Path, replaced: Size) -> None:
        """Give the draft its place under `parts`, where it replaces a part of this size.

        Raises `StorageFull`, and `FileNotFoundError` when the draft, or the parts before it, had to go for others.
        """
        folder = on_disk(0)
        key = f"parts/{place.parent.name}"
        part = on_disk(draft.stat().st_size)
        self.fit(draft, part.plus(folder))
        with self._lock:
            self._asker(draft)
            draft.rename(place)
            self._settle(draft)
            self._ledger.set(key, (self._ledger.size(key) or folder).plus(part).less(replaced))

    def drop_parts(self, name: str) -> None:
        """Drop all parts of an upload."""
        key = f"parts/{name}"
        self._layout.delete(key)
        with self._lock:
            self._ledger.remove(key)

    # --- room

    def _reserved(self, draft: Path) -> Size:
        with self._lock:
            return self._ledger.size(self._asker(draft).key) or NOTHING

    def _asker(self, draft: Path) -> _Draft:
        asker = self._drafts.get(draft)
        if asker is None:  # dropped: its caller no longer waits, or others needed the room
            raise StorageFull
        return asker

    def _reserve(self, draft: Path, more: Size) -> None:
        """Reserve `more` for a draft, and drop what must go for it. Raises `StorageFull`."""

        def reserve() -> str | None:
            with self._lock:
                victim = self._victim(draft, more)
                if victim is None:
                    key = self._asker(draft).key
                    self._ledger.set(key, (self._ledger.size(key) or NOTHING).plus(more))
                else:
                    self._ledger.remove(victim)
                    self._drafts.pop(self._layout.path(victim), None)
                    victim = self._layout.set_aside(victim)
                return victim

        while (victim := self._after_sweep(reserve)) is not None:
            self._layout.delete(victim)

    def _victim(self, draft: Path, more: Size) -> str | None:
        """Return the key of what must go for `more` of a draft, None if there is room. Raises `StorageFull`."""
        asker = self._asker(draft)
        victim = self._ledger.victim(more, asker.key, unfinished=asker.newest)
        if victim is None:
            return None
        spared = victim.key is None or (victim.own and not asker.newest and self._is_fresh(victim.key))
        if spared or self._ledger.exceeds(more):
            raise StorageFull(by_key=self._ledger.owner(asker.key) != COMMON)
        return victim.key

    def _after_sweep(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns; if it raises `StorageFull`, after a look for expired files."""
        try:
            return attempt()
        except StorageFull:
            if time.monotonic() - self._swept_at < _LOOK_AGAIN_S:
                raise
        self.sweep()
        return attempt()

    def _settle(self, draft: Path) -> None:
        """Reserve no more for a draft. With the lock held."""
        settled = self._drafts.pop(draft, None)
        if settled is not None:
            self._ledger.remove(settled.key)

    def _is_fresh(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return 0 <= self._now() - self._layout.path(name).stat().st_ctime < FRESH_S
        return False

    # --- stored files

    def find(self, name: str) -> Stored | None:
        """Return the file of this name, unless it is missing or expired."""
        if not NAME.fullmatch(name):
            return None
        path = self._layout.path(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        if status.st_mtime <= self._now():
            return None
        return Stored(name, path, status.st_size, status.st_ctime, status.st_mtime, read_meta(path))

    def delete(self, name: str) -> None:
        """Delete a stored file, if it is there: after a power cut, too, it is gone."""
        path = self._layout.path(name)
        if path.exists():
            self._layout.delete(name)
            sync(path.parent)
            with self._lock:
                self._ledger.remove(name)

    def sweep(self) -> None:
        """Drop expired files, count anew, then drop what is beyond the quota. Does nothing while another does so."""
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            with self._lock:
                self._ledger.recount()
            counted = self._ledger.replaced(self._layout.scan(self._now()))
            with self._lock:  # what was stored or dropped meanwhile may have been seen or not
                counted.follow(self._ledger, [draft.key for draft in self._drafts.values()])
                self._ledger = counted
            self._swept_at = time.monotonic()
            while (victim := self._beyond_quota()) is not None:
                self._layout.delete(victim)
        finally:
            self._sweeping.release()

    def _beyond_quota(self) -> str | None:
        with self._lock:
            victim = self._ledger.victim(NOTHING)
            if victim is None or victim.key is None or self._is_fresh(victim.key):
                return None
            self._ledger.remove(victim.key)
            return victim.key

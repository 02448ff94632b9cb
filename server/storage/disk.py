"""Files on disk under unguessable names, with expiry and quota. Metadata lies beside a file or in its inode.

    stored/ab/ab12….jpg             the bytes; the modification time is the time of expiry
    stored/ab/ab12….jpg.meta.json   `Meta`, where there is more to say than "a public picture, of the type of its name"
    incoming/                       incomplete files, emptied at the start
    parts/ab12….jpg/1-<etag>        parts of multipart uploads

A file appears whole or not at all (rename), its `Meta` always before it. Blocking; callers use threads.
"""

import contextlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from server.fal.lifecycle import PUBLIC, Acl

NAME = re.compile(r"[0-9a-f]{32}(\.[a-z0-9]{1,10})?")

# Files younger than this are not dropped to make room: their owners have not fetched them yet.
FRESH_S = 3600.0
# Making room goes down to this part of the quota, so that the next file need not make room again.
_AFTER_MAKING_ROOM = 0.9
# While fresh files use up the quota, the disk is scanned at most this often.
_LOOK_AGAIN_S = 10.0

_PICTURES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_META_ENDING = ".meta.json"


class StorageFull(Exception):
    """The quota is used up by files that may not be dropped."""


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metadata of a file. `inline`: verified to be a picture, which a browser may show; all else is a download."""

    content_type: str
    inline: bool = False
    file_name: str = ""
    owner: str = ""
    acl: Acl = PUBLIC


class Stored(NamedTuple):
    """A stored file. `created` and `expires` are Unix times."""

    name: str
    path: Path
    size: int
    created: float
    expires: float
    meta: Meta


class _Entry(NamedTuple):
    created: float
    expires: float
    size: int
    path: Path


def is_picture(content_type: str, head: bytes) -> bool:
    """Return whether a file that begins with these 12 bytes is the picture that its content type says."""
    return {
        "image/jpeg": head.startswith(b"\xff\xd8\xff"),
        "image/png": head.startswith(b"\x89PNG\r\n\x1a\n"),
        "image/webp": head.startswith(b"RIFF") and head[8:12] == b"WEBP",
    }.get(content_type, False)


class DiskStore:
    """Stores files. `ttl_s`: lifetime of files without one of their own. `used`: bytes on disk, as counted."""

    def __init__(self, root: Path, *, ttl_s: float, quota_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._stored = root / "stored"
        self._incoming = root / "incoming"
        self.parts = root / "parts"
        self._ttl_s = ttl_s
        self._quota = quota_bytes
        self._now = clock
        self._lock = threading.Lock()
        self._looked_at = -_LOOK_AGAIN_S
        self._drafts: dict[Path, int] = {}  # the bytes that are counted of each
        self.used = 0

    def prepare(self) -> None:
        """Make the folders, and drop incomplete files of an earlier server."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        for folder in (self._stored, self._incoming, self.parts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def draft(self) -> Path:
        """Return the path for writing a file that is to be `put`; `drop` it in the end."""
        draft = self._incoming / secrets.token_hex(16)
        with self._lock:
            self._drafts[draft] = 0
        return draft

    def take(self, draft: Path, size: int) -> None:
        """Reserve `size` more bytes for a draft. Raises `StorageFull`."""
        self.make_room(size)
        with self._lock:
            if draft not in self._drafts:
                raise FileNotFoundError(draft)  # dropped: its caller no longer waits
            if self.used + size > self._quota:
                raise StorageFull
            self.used += size
            self._drafts[draft] += size

    def settle(self, draft: Path, size: int) -> None:
        """End the reservation of a draft, of which `size` bytes stay used."""
        with self._lock:
            self.used += size - self._drafts.pop(draft, 0)

    def drop(self, draft: Path) -> None:
        """Drop a draft, if it has not been renamed."""
        draft.unlink(missing_ok=True)
        self.settle(draft, 0)

    def put(self, draft: Path, name: str, meta: Meta, *, seconds: int | None = None, durable: bool) -> None:
        """Give the draft its name; an existing file stays. `durable`: on disk when this returns."""
        path = self._path(name)
        if path.exists():
            self.drop(draft)
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # A reader must not find a private file without the metadata that says so, nor after a power cut.
        if meta != _implied(name, meta.owner):
            self._write_meta(path, meta)
            durable = True
        if durable:
            _sync(draft)
        now = self._now()
        os.utime(draft, (now, now + (self._ttl_s if seconds is None else seconds)))
        draft.rename(path)
        if durable:
            _sync(path.parent)
        self.settle(draft, path.stat().st_size)

    def free(self, size: int) -> None:
        """Count `size` bytes as no longer used."""
        with self._lock:
            self.used -= size

    def find(self, name: str) -> Stored | None:
        """Return the file of this name, unless it is missing or expired."""
        if not NAME.fullmatch(name):
            return None
        path = self._path(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        if status.st_mtime <= self._now():
            return None
        return Stored(name, path, status.st_size, status.st_ctime, status.st_mtime, _read_meta(path))

    def make_room(self, size: int) -> None:
        """Make room for `size` more bytes by dropping the oldest files. Raises `StorageFull`."""
        if self.used + size <= self._quota:
            return
        with self._lock:
            recent = time.monotonic() - self._looked_at < _LOOK_AGAIN_S
        if not recent:
            self.sweep(size)
        if self.used + size > self._quota:
            raise StorageFull

    def sweep(self, size: int = 0) -> None:
        """Drop expired files; then the oldest while more is used than the quota less `size`."""
        now = self._now()
        with self._lock:
            before, unfinished = self.used, sum(self._drafts.values())
        kept: list[_Entry] = []
        for entry in self._entries(now):
            if entry.expires <= now:
                _drop(entry.path)
            else:
                kept.append(entry)
        used = sum(entry.size for entry in kept) + unfinished + size_of(self.parts)
        if used + size > self._quota:
            for entry in sorted(kept):
                if used + size <= self._quota * _AFTER_MAKING_ROOM or entry.created > now - FRESH_S:
                    break
                _drop(entry.path)
                used -= entry.size
        with self._lock:
            self.used += used - before  # what was stored meanwhile may have been seen or not: better counted twice
            self._looked_at = time.monotonic()

    def _entries(self, now: float) -> Iterator[_Entry]:
        for folder in self._stored.iterdir():
            names = {found.name: found for found in os.scandir(folder)}
            for name, found in names.items():
                try:
                    status = found.stat()
                except FileNotFoundError:
                    continue
                if not name.endswith(_META_ENDING):
                    yield _Entry(status.st_ctime, status.st_mtime, status.st_size, Path(found.path))
                elif name.removesuffix(_META_ENDING) not in names and status.st_mtime < now - FRESH_S:
                    Path(found.path).unlink(missing_ok=True)  # killed between writing the two

    def _path(self, name: str) -> Path:
        return self._stored / name[:2] / name

    def _write_meta(self, path: Path, meta: Meta) -> None:
        draft = self.draft()
        try:
            draft.write_bytes(msgspec.json.encode(meta))
            _sync(draft)
            draft.rename(_meta_path(path))
        finally:
            self.drop(draft)


def size_of(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(here, name).stat().st_size
    return total


def _implied(name: str, owner: str) -> Meta:
    """Return the metadata implied by the name alone: a public picture."""
    ending = name.rpartition(".")[2]
    return Meta(_PICTURES.get(ending, "application/octet-stream"), inline=ending in _PICTURES, owner=owner)


def _meta_path(path: Path) -> Path:
    return path.with_name(path.name + _META_ENDING)


def _read_meta(path: Path) -> Meta:
    try:
        return msgspec.json.decode(_meta_path(path).read_bytes(), type=Meta)
    except FileNotFoundError:
        return _implied(path.name, owner="")


def _drop(path: Path) -> None:
    path.unlink(missing_ok=True)
    _meta_path(path).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

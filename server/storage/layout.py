"""What lies where in the folder of stored files. Metadata lies beside a file or in its inode.

    stored/ab/ab12….jpg             the bytes; the modification time is the time of expiry
    stored/ab/ab12….jpg.meta.json   `Meta`, where there is more to say than "a public picture, of the type of its name"
    incoming/                       incomplete files, and what is being deleted; emptied at the start
    parts/ab12….jpg/1               parts of multipart uploads

A key, as the ledger has it, is a stored file's name, or `incoming/…` or `parts/…`. Blocking; callers use threads.
"""

import contextlib
import functools
import heapq
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from server.fal.lifecycle import PUBLIC, Acl
from server.storage.ledger import Size, on_disk

LOG = logging.getLogger(__name__)

# Metadata without its file is left from a kill between writing the two when it is older than this.
_ORPHAN_S = 3600.0

# What `is_picture` looks at, in bytes.
HEAD_BYTES = 12

_PICTURES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_META_ENDING = ".meta.json"


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metadata of a file. `inline`: verified to be a picture, which a browser may show; all else is a download."""

    content_type: str
    inline: bool = False
    file_name: str = ""
    owner: str = ""
    acl: Acl = PUBLIC


def is_picture(content_type: str, head: bytes) -> bool:
    """Return whether a file that begins with these `HEAD_BYTES` is the picture that its content type says."""
    return {
        "image/jpeg": head.startswith(b"\xff\xd8\xff"),
        "image/png": head.startswith(b"\x89PNG\r\n\x1a\n"),
        "image/webp": head.startswith(b"RIFF") and head[8:12] == b"WEBP",
    }.get(content_type, False)


class Layout:
    """The folder of stored files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stored = root / "stored"
        self._incoming = root / "incoming"
        self.parts = root / "parts"

    def prepare(self) -> None:
        """Make the folders, and drop incomplete files of an earlier server."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        for folder in (self._stored, self._incoming, self.parts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, key: str) -> Path:
        """Return the path of an item."""
        return self._root / key if "/" in key else self._stored / key[:2] / key

    def set_aside(self, key: str) -> str:
        """Return the key to `delete` an item by: parts are moved, so that none which comes meanwhile goes with them."""
        if not key.startswith("parts/"):
            return key
        aside = f"incoming/{secrets.token_hex(16)}"
        with contextlib.suppress(FileNotFoundError):
            self.path(key).rename(self.path(aside))
        return aside

    def delete(self, key: str) -> None:
        """Delete an item, with its metadata."""
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif "/" in key:
            path.unlink(missing_ok=True)
        else:
            drop(path)

    def write_meta(self, path: Path, meta: Meta) -> None:
        """Store the metadata of the file at `path`; on disk when this returns."""
        draft = self._incoming / secrets.token_hex(16)
        try:
            draft.write_bytes(msgspec.json.encode(meta))
            sync(draft)
            draft.rename(_meta_path(path))
        finally:
            draft.unlink(missing_ok=True)

    def scan(self, now: float) -> Iterator[tuple[str, Size]]:
        """Yield every stored file that has not expired, oldest first, after all parts. Drops those that have."""
        for folder in self.parts.iterdir():
            yield f"parts/{folder.name}", functools.reduce(Size.plus, map(on_disk, sizes(folder)), on_disk(0))
        # Each list is short, so that no sort keeps the interpreter for long.
        folders = [sorted(self._unexpired(folder, now)) for folder in self._stored.iterdir()]
        for _, name, size in heapq.merge(*folders):
            yield name, size

    def _unexpired(self, folder: Path, now: float) -> Iterator[tuple[float, str, Size]]:
        names = {found.name: found for found in os.scandir(folder)}
        for name, found in names.items():
            try:
                status = found.stat()
            except FileNotFoundError:
                continue
            if name.endswith(_META_ENDING):
                if name.removesuffix(_META_ENDING) not in names and status.st_mtime < now - _ORPHAN_S:
                    Path(found.path).unlink(missing_ok=True)  # killed between writing the two
            elif status.st_mtime <= now:
                try:
                    drop(Path(found.path))
                except OSError as error:  # the others go all the same
                    LOG.warning("an expired file could not be deleted: %s", error.strerror)
            else:
                yield status.st_ctime, name, on_disk(status.st_size, meta=name + _META_ENDING in names)


def sizes(folder: Path) -> list[int]:
    """Return the bytes of each file in a folder; nothing of one that is gone."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for file in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                found.append(file.stat().st_size)
    return found


def implied(name: str, owner: str) -> Meta:
    """Return the metadata implied by the name alone: a public picture."""
    ending = name.rpartition(".")[2]
    return Meta(_PICTURES.get(ending, "application/octet-stream"), inline=ending in _PICTURES, owner=owner)


def _meta_path(path: Path) -> Path:
    return path.with_name(path.name + _META_ENDING)


def read_meta(path: Path) -> Meta:
    """Return the metadata of the stored file at `path`."""
    try:
        return msgspec.json.decode(_meta_path(path).read_bytes(), type=Meta)
    except FileNotFoundError:
        return implied(path.name, owner="")


def drop(path: Path) -> None:
    """Delete a stored file and its metadata."""
    path.unlink(missing_ok=True)
    _meta_path(path).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk write a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

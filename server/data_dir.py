"""The data directory: private to its owner, its small files written atomically, locked among processes.

Prompts, pictures, keys and tokens lie there, so no other user of the machine may read it, not even certificates: a user
who is to trust the local CA gets a copy of it.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as Held

from server.settings import SettingsError

__all__ = ["Held", "locked", "prepare", "read_secret", "usable", "write_whole"]

_SECRET_BYTES = 32

_WRITE = "let this user write there"

_HINTS = {
    errno.EACCES: _WRITE,
    errno.EPERM: _WRITE,
    errno.EISDIR: "move that folder away",
    errno.ENOSPC: "free some space or inodes (`df`, `df -i`)",
    errno.EDQUOT: "free some of this user's quota",
    errno.ENOTDIR: "name a folder",
    errno.EEXIST: "name a folder",
    errno.EROFS: "mount the file system so that it can be written",
    errno.EIO: "the disk may be failing (the system's log says so)",
    errno.ESTALE: "mount the file system again",
    errno.ENOTCONN: "mount the file system again",
}


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Context of work in the data directory. Turns an `OSError` of files or disks into `SettingsError`."""
    try:
        yield
    except OSError as error:
        if (hint := _HINTS.get(error.errno or 0)) is None:
            raise
        raise SettingsError(
            f"data-dir: {error.filename or folder} can't be written ({error.strerror or error})."
            f" Hint: {hint}, or choose another --data-dir"
        ) from error


def prepare(folder: Path) -> None:
    """Make the data directory if need be, readable by its owner only. Raises `SettingsError` where it can't be made."""
    with usable(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        # A mounted volume may have another owner, and a folder like /tmp is shared: their owners decide who enters.
        if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
            folder.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
        (folder / "lock").touch()


def write_whole(file: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file atomically; it is on disk when this returns. Two writers at once need `locked`."""
    draft = file.with_name(f"{file.name}.part")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        os.fchmod(stream.fileno(), mode)  # whatever the umask
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """Exclude other processes while the block runs: for a file that is read, changed and written.

    The lock ends with its process, however that ends. Raises `Held` at once instead of waiting, without `wait`.
    """
    # Another file system's fallback, a marker file, would outlive a killed process.
    with FileLock(lock, mode=0o600, blocking=wait, fallback_to_soft=False):
        yield


def read_secret(file: Path) -> bytes:
    """Return the random secret in `file`, which only its owner can read; make one where there is none.

    Raises `SettingsError` for one that is damaged: with another, what was signed before would be refused unexplained.
    """
    if file.exists():
        secret = file.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise SettingsError(
                f"{file} holds no secret ({len(secret)} bytes, not {_SECRET_BYTES}). Hint: restore it; or remove it:"
                " tokens and upload URLs that it signed are then refused"
            )
        return secret
    secret = secrets.token_bytes(_SECRET_BYTES)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(file, secret)
    return secret

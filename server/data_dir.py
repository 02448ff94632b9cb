"""The data directory: private to its owner, its small files written atomically, locked among processes.

Prompts, pictures, keys and tokens lie there, so no other user of the machine may read it, not even certificates: a user
who is to trust the local CA gets a copy of it.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from filelock import Timeout as Held

from server.settings import SettingsError

__all__ = ["Held", "locked", "prepare", "read_secret", "write_whole"]

_SECRET_BYTES = 32


def prepare(folder: Path) -> None:
    """Make the data directory if need be, readable by its owner only. Raises `SettingsError` where it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        # A mounted volume may have another owner, and a folder like /tmp is shared: their owners decide who enters.
        if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
            folder.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
        (folder / "lock").touch()
    except OSError as error:
        raise SettingsError(
            f"data-dir: {folder} can't be written ({error.strerror}). Hint: choose another --data-dir"
        ) from error


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
    """Return the random secret in `file`, which only its owner can read; make one where there is none."""
    if file.exists() and len(secret := file.read_bytes()) == _SECRET_BYTES:
        return secret
    secret = secrets.token_bytes(_SECRET_BYTES)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(file, secret)
    return secret

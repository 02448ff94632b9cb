"""API keys: `id:secret` pairs from the settings, and a file of named, hashed, revocable ones.

The file, `<data_dir>/keys.json`, holds SHA-256 digests. Its secrets are 256 random bits, which can't be guessed, so a
slow password hash would only cost time on every call. A running server notices a change of the file at the next call.
Once a key has ever been made, the server stays closed: also if all are revoked, and if the file is lost or damaged.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import hmac
import logging
import secrets
import uuid
from pathlib import Path
from typing import Any

import msgspec

from server.data_dir import locked, write_whole
from server.settings import AccessSettings, DataSettings, SettingsError

_LONGEST_NAME = 64  # characters: one line of a list

_LOG = logging.getLogger(__name__)


class KeysError(SettingsError):
    """The key file can't be used; the message says why, with a hint."""


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One API key. `digest`: hex SHA-256 of `id:secret`. `created`: ISO 8601.

    `calls`, `queued`, `sessions`: its own limits on calls at once, waiting jobs, realtime sockets; 0: the server's.
    """

    id: str
    name: str
    digest: str
    created: str
    revoked: bool = False
    calls: int = 0
    queued: int = 0
    sessions: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """What one caller may have in flight; None: as much as the server.

    `connections`: all exchanges and sockets, calls and sessions too. `memory`: bytes of request bodies. `queued_bytes`:
    inputs of waiting and running jobs.
    """

    connections: int | None = None
    calls: int | None = None
    queued: int | None = None
    sessions: int | None = None
    memory: int | None = None
    queued_bytes: int | None = None


class _Document(msgspec.Struct):
    """What the file holds."""

    keys: list[Key]


def allowance(settings: AccessSettings, key: Key) -> Allowance:
    """Return a key's own limits, and the share that every key has where it has none."""

    def share(total: int) -> int:
        return max(1, int(total * settings.key_share))

    return Allowance(
        connections=max(share(settings.max_connections), key.calls + key.sessions),
        calls=key.calls or share(settings.max_calls),
        queued=key.queued or share(settings.max_queue),
        sessions=key.sessions or share(settings.max_sessions),
        memory=max(share(settings.body_budget_bytes), settings.max_body_bytes),
        queued_bytes=max(share(settings.jobs_quota_bytes), settings.max_body_bytes),
    )


def digest(credential: str) -> str:
    """Return what is stored of `id:secret`: hex SHA-256."""
    return hashlib.sha256(credential.encode()).hexdigest()


def path(settings: DataSettings) -> Path:
    """Return the path of the key file."""
    return settings.data_dir / "keys.json"


def read(file: Path) -> list[Key]:
    """Return every key in the file, also revoked ones; none when there is no file. Raises `KeysError`."""
    try:
        return _read(file)
    except FileNotFoundError:
        return []


def _read(file: Path) -> list[Key]:
    """As `read`. Raises `FileNotFoundError` too."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Document).keys
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeysError(f"{file} can't be read ({error.strerror}). Hint: let this user read it") from error
    except ValueError as error:
        raise KeysError(
            f"{file} is no key file ({error}). Hint: restore it, or remove it and add the keys anew"
        ) from error


def add(file: Path, name: str) -> str:
    """Make a key called `name` and return it, `id:secret`, this once.

    Raises `KeysError` for a name that is in use, and for one that would not show in a list.
    """
    if not (name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
        raise KeysError(
            f"{name!r} is no name for a key. Hint: say whose it is in 1 to {_LONGEST_NAME} printable characters"
        )
    credential = f"{uuid.uuid4()}:{secrets.token_hex(32)}"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _locked(file):
        keys = read(file)
        if _called(keys, name):
            raise KeysError(f"a key in use is called {name!r} already. Hint: choose another name, or revoke that one")
        _write(file, [*keys, Key(credential.partition(":")[0], name, digest(credential), now)])
    return credential


def revoke(file: Path, which: str) -> Key:
    """Revoke the key whose id or name is `which`, and return it. Raises `KeysError` when none is."""
    return _change(file, which, revoked=True)


def limit(file: Path, which: str, **limits: int) -> Key:
    """Set limits of the key whose id or name is `which`, and return it; others stay. Raises `KeysError`."""
    return _change(file, which, **limits)


def _change(file: Path, which: str, **fields: Any) -> Key:
    if not file.exists():  # nor, perhaps, a folder to lock it in
        raise _unknown(which)
    with _locked(file):
        keys = read(file)
        found = _called(keys, which)
        if not found:
            raise _unknown(which)
        if len(found) > 1:  # earlier releases let one name be given twice
            raise KeysError(f"{len(found)} keys are called {which!r}. Hint: say its id; `fourstep keys list` shows it")
        changed = dataclasses.replace(found[0], **fields)
        _write(file, [changed if key is found[0] else key for key in keys])
    return changed


def _unknown(which: str) -> KeysError:
    return KeysError(f"no key in use is called {which!r}. `fourstep keys list` shows them")


def _called(keys: list[Key], which: str) -> list[Key]:
    """Return the keys in use with this id or name."""
    return [key for key in keys if which in {key.id, key.name} and not key.revoked]


def _locked(file: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the file: of two commands at once, one would undo what the other did."""
    return locked(file.with_name("keys.lock"))


def _write(file: Path, keys: list[Key]) -> None:
    write_whole(file, msgspec.json.format(msgspec.json.encode(_Document(keys)), indent=1))


class KeyRing:
    """The keys in use: those of the settings, and those of the file as it is now, or as it could last be read.

    Raises `KeysError` for a file that can't be read when the server starts; later on that is only logged.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._fixed = {key.id: key for key in _from_settings(settings.keys)}
        self._file = path(settings)
        self._stamp = _stamp(self._file)
        self._filed = {key.id: key for key in read(self._file)}
        self._configured = bool(self._fixed) or self._stamp is not None

    @property
    def configured(self) -> bool:
        """Whether any key was ever set, so that calls need one. Once true it stays true."""
        self._load()
        return self._configured

    def find(self, key_id: str) -> Key | None:
        """Return the key in use with this id."""
        self._load()
        key = self._fixed.get(key_id) or self._filed.get(key_id)
        return key if key and not key.revoked else None

    def limited(self) -> list[str]:
        """Return the ids of the keys in use with limits of their own on calls or sockets."""
        self._load()
        keys = (*self._fixed.values(), *self._filed.values())
        return [key.id for key in keys if (key.calls or key.sessions) and not key.revoked]

    def match(self, credential: str) -> Key | None:
        """Return the key in use that `id:secret` is. A wrong secret takes the same time as an unknown id."""
        key = self.find(credential.partition(":")[0])
        expected = key.digest if key else digest("")
        return key if hmac.compare_digest(digest(credential), expected) else None

    def _load(self) -> None:
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._configured = True  # a key file, present or removed, means that the server was to be closed
        try:
            self._filed = {key.id: key for key in _read(self._file)}
        except (KeysError, FileNotFoundError) as error:
            _LOG.error("the keys as they were stay in use, and no other is accepted: %s", error)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:  # missing or unreadable: reported where it is read
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _from_settings(written: str) -> list[Key]:
    keys = []
    for number, part in enumerate(filter(None, (part.strip() for part in written.split(","))), start=1):
        key_id, _, secret = part.partition(":")
        if not key_id or not secret:
            raise SettingsError(f"keys: entry {number} is not of the form id:secret")
        keys.append(Key(key_id, key_id, digest(part), created=""))
    return keys

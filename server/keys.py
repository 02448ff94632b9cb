"""API keys: who may call. `id:secret` pairs from the settings, and a file of named, hashed, revocable ones.

The file, `<data_dir>/keys.json`, holds SHA-256 digests. Its secrets are 256 random bits, which no guessing reaches, so
a slow password hash would only cost time on every call. A running server notices a change of the file at the next call.
Once a key has ever been made, the server stays closed, even if all are revoked.
"""

import dataclasses
import datetime
import hashlib
import hmac
import json
import logging
import secrets
import uuid
from pathlib import Path
from typing import Any

from server.data_dir import write_whole
from server.settings import Settings, SettingsError

_LOG = logging.getLogger(__name__)


class KeysError(ValueError):
    """The key file can't be used; the message says why."""


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
    """What one caller may have in hand at once; None: as much as the server. `memory`: bytes of request bodies."""

    calls: int | None = None
    queued: int | None = None
    sessions: int | None = None
    memory: int | None = None


def allowance(settings: Settings, key: Key) -> Allowance:
    """A key's own limits, and the share that every key has where it has none."""

    def share(total: int) -> int:
        return max(1, int(total * settings.key_share))

    return Allowance(
        calls=key.calls or share(settings.max_calls),
        queued=key.queued or share(settings.max_queue),
        sessions=key.sessions or share(settings.max_sessions),
        memory=max(share(settings.body_budget_bytes), settings.max_body_bytes),
    )


def digest(credential: str) -> str:
    """What is kept of `id:secret`."""
    return hashlib.sha256(credential.encode()).hexdigest()


def path(settings: Settings) -> Path:
    """Where the key file lies."""
    return settings.data_dir / "keys.json"


def read(file: Path) -> list[Key]:
    """Every key in the file, the revoked ones too; none when there is no file. Raises `KeysError`."""
    try:
        document = json.loads(file.read_bytes())
        return [Key(**entry) for entry in document["keys"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise KeysError(f"{file} is no key file: {type(error).__name__}") from error


def add(file: Path, name: str) -> str:
    """Make a key called `name` and return it, `id:secret`, this once. Raises `KeysError`."""
    credential = f"{uuid.uuid4()}:{secrets.token_hex(32)}"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _write(file, [*read(file), Key(credential.partition(":")[0], name, digest(credential), now)])
    return credential


def revoke(file: Path, which: str) -> Key:
    """Revoke the key whose id or name is `which`, and return it. Raises `KeysError` when none is."""
    return _change(file, which, revoked=True)


def limit(file: Path, which: str, **limits: int) -> Key:
    """Set limits of the key whose id or name is `which`, and return it; others stay. Raises `KeysError`."""
    return _change(file, which, **limits)


def _change(file: Path, which: str, **fields: Any) -> Key:
    keys = read(file)
    found = next((key for key in keys if which in {key.id, key.name} and not key.revoked), None)
    if found is None:
        raise KeysError(f"no key in use is called {which!r}")
    changed = dataclasses.replace(found, **fields)
    _write(file, [changed if key is found else key for key in keys])
    return changed


def _write(file: Path, keys: list[Key]) -> None:
    write_whole(file, json.dumps({"keys": [dataclasses.asdict(key) for key in keys]}, indent=1).encode())


class KeyRing:
    """The keys in use: those of the settings, and those of the file as it is now."""

    def __init__(self, settings: Settings) -> None:
        self._fixed = {key.id: key for key in _from_settings(settings.keys)}
        self._file = path(settings)
        self._stamp: Any = None
        self._filed: dict[str, Key] = {}
        self._load()

    @property
    def configured(self) -> bool:
        """Whether any key was ever set, so that calls need one."""
        self._load()
        return bool(self._fixed or self._filed)

    def find(self, key_id: str) -> Key | None:
        """The key in use with this id."""
        self._load()
        key = self._fixed.get(key_id) or self._filed.get(key_id)
        return key if key and not key.revoked else None

    def match(self, credential: str) -> Key | None:
        """The key in use that `id:secret` is. Takes the same time for a wrong secret as for an unknown id."""
        key = self.find(credential.partition(":")[0])
        expected = key.digest if key else digest("")
        return key if hmac.compare_digest(digest(credential), expected) else None

    def _load(self) -> None:
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._filed = {key.id: key for key in read(self._file)}
        except KeysError:
            if self._stamp is None:
                raise
            _LOG.exception("the key file can't be read; the keys as they were stay in use")
        self._stamp = stamp


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
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

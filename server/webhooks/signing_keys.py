"""Ed25519 keys that sign webhooks, and the JWKS document by which receivers check signatures.

Receivers may keep a JWKS document for a day. So a new key is published a day before it signs, and an old one a day
after it has signed for the last time; a rotation takes effect by itself.
"""

import base64
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.data_dir import locked, write_whole
from server.settings import SettingsError

JWKS_CACHE_S = 24 * 3600.0  # how long fal lets receivers keep the document


class SigningKey(msgspec.Struct, frozen=True):
    """32 bytes of private key, and the Unix time from which it signs."""

    private: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    signs_from: float

    @property
    def jwk(self) -> dict[str, str]:
        """The public half. `x` is padded, against RFC 7517: fal's documented Python verifier needs that."""
        public = Ed25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(public).decode()}


_DECODE = msgspec.json.Decoder(Annotated[list[SigningKey], msgspec.Meta(min_length=1)]).decode


def signer(keys: Sequence[SigningKey], now: float) -> SigningKey:
    """Return the newest key in effect. `keys` are in the order of `signs_from`, the first of them in the past."""
    return [key for key in keys if key.signs_from <= now][-1]


def published(keys: Sequence[SigningKey], now: float) -> list[SigningKey]:
    """Return the keys to publish: future ones, the one in effect, and old ones that a receiver may still need."""
    successors = [key.signs_from for key in keys[1:]]
    return [
        key
        for key, superseded_at in itertools.zip_longest(keys, successors, fillvalue=None)
        if key is not None and (superseded_at is None or now < superseded_at + JWKS_CACHE_S)
    ]


class SigningKeys:
    """The keys in one file, readable by its owner alone; created at first use, read again when the file has changed.

    While the file is lost or damaged every method raises `SettingsError`, which says what to do.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = clock
        self._read_at = -1
        self._keys: list[SigningKey] = []
        with self._locked():
            if not path.exists():
                _write(path, [_new_key(signs_from=0.0)])
        self._load()

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        key = signer(self._load(), self._now())
        return Ed25519PrivateKey.from_private_bytes(key.private).sign(message)

    def published(self) -> list[SigningKey]:
        """Return the keys that receivers may need, in the order in which they sign."""
        return published(self._load(), self._now())

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the document at `/.well-known/jwks.json`."""
        return {"keys": [key.jwk for key in self.published()]}

    def rotate(self) -> SigningKey:
        """Publish a new key, which signs from a day later, and return it; drop keys that no receiver can need.

        A running server sees it at once.
        """
        key = _new_key(signs_from=self._now() + JWKS_CACHE_S)
        with self._locked():
            _write(self._path, [*self.published(), key])
        return key

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._path.with_name(f"{self._path.name}.lock"))

    def _load(self) -> list[SigningKey]:
        try:
            changed_at = self._path.stat().st_mtime_ns
            if changed_at != self._read_at:
                self._keys = _DECODE(self._path.read_bytes())
                self._read_at = changed_at
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{self._path} holds no signing keys ({error}). Hint: restore it; or remove it, start again and have"
                " receivers of webhooks fetch the new key"
            ) from error
        return self._keys


def _new_key(signs_from: float) -> SigningKey:
    return SigningKey(Ed25519PrivateKey.generate().private_bytes_raw(), signs_from)


def _write(path: Path, keys: Sequence[SigningKey]) -> None:
    """Write the keys; they are on disk when this returns, because signatures of a lost key can't be checked."""
    write_whole(path, msgspec.json.encode(keys))

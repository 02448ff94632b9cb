"""Names of stored files: 128 random bits which can't be guessed, then whose file it is, for those who have the secret.

    0123…cdef            32 hex digits, random
    89ab01234567         12 hex digits: the owner's tag and a check of it, masked by a keyed hash of the random part
    .jpg                 the ending of its type

So the owner of each file survives a restart, and nothing more is written. Without the secret two files of one owner
look like any two. Names of version 0.1 end after the random part; their files count for the `COMMON` owner.
"""

import hashlib
import re
import secrets

from server.access.auth import ANONYMOUS

NAME = re.compile(r"[0-9a-f]{32}([0-9a-f]{12})?(\.[a-z0-9]{1,10})?")

_RANDOM_CHARS = 32
_END = 44
_TAG_BYTES = 4
_CHECK = bytes(2)
# Owner of files without a tag that this secret made, and of all files of a server without keys.
COMMON = bytes(_TAG_BYTES)

_ENDING = re.compile(r"\.([a-z0-9]{1,10})$")
_IMAGE_ENDINGS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


class Names:
    """Makes names, and reads in them whom a file counts for."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def new(self, owner: str, content_type: str, file_name: str = "") -> str:
        """Return a name for a new file of this owner."""
        ending = _IMAGE_ENDINGS.get(content_type)
        if ending is None and (match := _ENDING.search(file_name.lower())):
            ending = match[1]
        random = secrets.token_hex(_RANDOM_CHARS // 2)
        masked = _xor(self._tag(owner) + _CHECK, self._mask(random))
        return f"{random}{masked.hex()}" + (f".{ending}" if ending else "")

    def account(self, name: str) -> bytes:
        """Return the tag of the owner that a file counts for; the name may go on after its last hex digit."""
        try:
            masked = bytes.fromhex(name[_RANDOM_CHARS:_END])
        except ValueError:
            return COMMON
        if len(masked) != _TAG_BYTES + len(_CHECK):
            return COMMON
        plain = _xor(masked, self._mask(name[:_RANDOM_CHARS]))
        return plain[:_TAG_BYTES] if plain[_TAG_BYTES:] == _CHECK else COMMON

    def _tag(self, owner: str) -> bytes:
        if owner in {"", ANONYMOUS.id}:
            return COMMON
        return self._hash(owner, _TAG_BYTES, b"owner")

    def _mask(self, random: str) -> bytes:
        return self._hash(random, _TAG_BYTES + len(_CHECK), b"mask")

    def _hash(self, text: str, size: int, purpose: bytes) -> bytes:
        return hashlib.blake2b(text.encode(), key=self._secret, digest_size=size, person=purpose).digest()


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(other))

"""Upload tokens: signed permission to upload one file, carried by the upload URL, so that the server keeps no state.

A token is `<payload>.<signature>`, both base64url: msgspec JSON of `Upload`, and its HMAC-SHA256. Whoever has it may
store bytes under the one name in it until `until`, needs no other credentials, and can change nothing about them.
"""

import base64
import binascii
import hashlib
import hmac
import re
import time

import msgspec

from server.fal.errors import PlainError
from server.fal.lifecycle import Lifecycle
from server.storage.names import Names

# Long enough for 512 MiB over 128 kbit/s.
VALID_S = 10 * 3600

_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+(; ?[\x20-\x7e]+)?", re.IGNORECASE)
_MAX_TYPE_CHARS = 200
_MAX_NAME_CHARS = 200


class Upload(msgspec.Struct, frozen=True, omit_defaults=True):
    """A permitted upload: name on disk, the sender's type and file name, owner, lifecycle, end (Unix time)."""

    name: str
    content_type: str
    file_name: str
    owner: str
    lifecycle: Lifecycle
    until: int


def permit(names: Names, content_type: str, file_name: str, owner: str, lifecycle: Lifecycle) -> Upload:
    """Return a new upload, under a name that can't be guessed."""
    content_type = clean_type(content_type)
    file_name = clean_name(file_name)
    name = names.new(owner, content_type, file_name)
    return Upload(name, content_type, file_name, owner, lifecycle, int(time.time()) + VALID_S)


def clean_type(content_type: str) -> str:
    """Return the content type, or `application/octet-stream` when it is malformed."""
    known = _TYPE.fullmatch(content_type) if len(content_type) <= _MAX_TYPE_CHARS else None
    return content_type if known else "application/octet-stream"


def clean_name(file_name: str) -> str:
    """Return the last part of a path, printable. It is only shown: no file has this name on disk."""
    last = re.split(r"[/\\]", file_name)[-1]
    return "".join(letter for letter in last if letter.isprintable())[-_MAX_NAME_CHARS:].strip(". ")


class UploadTokens:
    """Signs and checks upload tokens."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._decoder = msgspec.json.Decoder(Upload)

    def issue(self, upload: Upload) -> str:
        """Return the token for an upload."""
        payload = _encode(msgspec.json.encode(upload))
        return f"{payload}.{self._signature(payload)}"

    def redeem(self, token: str, name: str) -> Upload:
        """Return the upload that a token allows under `name`. Raises `PlainError` 403."""
        payload, _, signature = token.partition(".")
        if not token.isascii() or not hmac.compare_digest(signature, self._signature(payload)):
            raise PlainError(403, "This upload URL is not valid")
        upload = self._decoder.decode(_decode(payload))
        if upload.name != name:
            raise PlainError(403, "This upload URL is not valid")
        if upload.until < time.time():
            raise PlainError(403, "This upload URL has expired")
        return upload

    def _signature(self, payload: str) -> str:
        return _encode(hmac.new(self._secret, payload.encode(), hashlib.sha256).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))

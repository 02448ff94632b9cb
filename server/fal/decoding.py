"""Decodes the known fields of an input out of a JSON body or a msgpack frame; skips all others.

A document can be made to take a hundred times its own size in memory (`{},{},{}…`), and to hold up the event loop while
it is built. So unknown fields are skipped, not built, and so are arrays and objects as values of known fields, which
take none. JSON that is small or plainly written, as all that clients send, is parsed whole: that is the fastest, and
its memory is bounded all the same.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from server.fal import schemas
from server.fal.errors import InvalidInput, error_item
from server.fal.schemas import LcmInput

# Beside the input's own: the siblings' name for a flag of it, and realtime's picture.
NAMES = (*LcmInput.model_fields, "enable_safety_checker", "image_bytes")

# Read at once, JSON of this size takes a few MB at worst.
_SMALL_BYTES = 64 * 1024
# As does one with no more commas and brackets than this: each value comes behind one.
_FEW = 10_000

_Skimmed = msgspec.defstruct("_Skimmed", [(name, msgspec.Raw, msgspec.Raw()) for name in NAMES])
_JSON, _ANY_JSON = msgspec.json.Decoder(_Skimmed), msgspec.json.Decoder(msgspec.Raw)
_MSGPACK, _ANY_MSGPACK = msgspec.msgpack.Decoder(_Skimmed), msgspec.msgpack.Decoder(msgspec.Raw)
_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_JSON_NESTED = frozenset(b"[{")
_MSGPACK_MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_MSGPACK_NESTED = _MSGPACK_MAPS | {*range(0x90, 0xA0), 0xDC, 0xDD}
# Stands for an array or an object: what is wrong with one is the same, whatever is in it.
_NESTED = ()


def decode_json(body: bytes | bytearray, *, small_bytes: int = _SMALL_BYTES, few: int = _FEW) -> dict[str, Any]:
    """Return the known fields in a JSON body. Raises `InvalidInput`.

    A body over `small_bytes` with more than `few` commas or brackets is skimmed instead of parsed whole.
    """
    if len(body) <= small_bytes or not _is_crowded(body, few):
        given = schemas.parse_json(body)
        return {name: given[name] for name in NAMES if name in given}
    try:
        skimmed = _JSON.decode(body)
    except _FAULTS as error:
        raise schemas.not_an_object() if _is_whole(_ANY_JSON, body) else schemas.json_invalid(error) from None
    return {
        name: _NESTED if raw[0] in _JSON_NESTED else schemas.from_json(bytes(raw)) for name, raw in _present(skimmed)
    }


def decode_msgpack(frame: bytes) -> dict[str, Any]:
    """Return the known fields in a msgpack frame. Raises `InvalidInput`."""
    try:
        skimmed = _MSGPACK.decode(frame)
        return {
            name: _NESTED if raw[0] in _MSGPACK_NESTED else msgspec.msgpack.decode(raw)
            for name, raw in _present(skimmed)
        }
    except _FAULTS:
        if _is_whole(_ANY_MSGPACK, frame) and frame[0] not in _MSGPACK_MAPS:
            raise schemas.not_an_object() from None
        raise InvalidInput([error_item(("body",), "msgpack_invalid", "msgpack decode error")]) from None


def _is_whole(decoder: Any, document: bytes | bytearray) -> bool:
    """Return whether a document is well formed, whatever it holds."""
    try:
        decoder.decode(document)
    except _FAULTS:
        return False
    return True


def _is_crowded(body: bytes | bytearray, few: int) -> bool:
    return any(_has_more(body, mark, few) for mark in (b",", b"[", b"{"))


def _has_more(body: bytes | bytearray, mark: bytes, few: int) -> bool:
    at = -1
    for _ in range(few):
        at = body.find(mark, at + 1)
        if at < 0:
            return False
    return True


def _present(skimmed: object) -> Iterator[tuple[str, memoryview]]:
    raws = ((name, memoryview(getattr(skimmed, name))) for name in NAMES)
    return ((name, raw) for name, raw in raws if raw)

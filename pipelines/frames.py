"""Frames: how messages go over the socket between the server and an engine process.

A frame is a 4-byte big-endian length and a body of that length: one tagged struct of `messages` in msgpack.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from pipelines.messages import FromEngine, ToEngine

# Bytes of a frame's body, at most, from an engine: eight pictures of a megapixel are some ten megabytes.
MAX_FRAME = 256 * 1024 * 1024

B = TypeVar("B", bytes, bytearray)

_LENGTH_BYTES = 4

_ENCODER = msgspec.msgpack.Encoder()
_TO_ENGINE = msgspec.msgpack.Decoder(ToEngine)
_FROM_ENGINE = msgspec.msgpack.Decoder(FromEngine)


class OverlongFrame(Exception):
    """A frame whose length field says more than `MAX_FRAME`."""


def write_frame(message: ToEngine | FromEngine) -> bytes:
    """Return one message as it goes over the socket: length and body."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def read_frame(read: Callable[[int], B | None]) -> B | None:
    """Return the body of the next frame, None at the end of the stream.

    `read(size)` returns exactly `size` bytes, waiting for them, or None (or nothing) at the end of the stream.
    """
    length = read(_LENGTH_BYTES)
    return read(int.from_bytes(length, "big")) if length else None


def frame_end(received: memoryview, begin: int) -> int:
    """Return the offset at which the frame that begins at `begin` ends; before its length has come, that of the length.

    For a reader that keeps what has come: the frame is complete once the result is at most `len(received)`. Raises
    `OverlongFrame`.
    """
    end = begin + _LENGTH_BYTES
    if len(received) < end:
        return end
    size = int.from_bytes(received[begin:end], "big")
    if size > MAX_FRAME:
        raise OverlongFrame(size)
    return end + size


def frame_body(received: memoryview, begin: int, end: int) -> memoryview:
    """Return the body of the frame that lies between `begin` and `end`, without a copy."""
    return received[begin + _LENGTH_BYTES : end]


def parse_to_engine(body: bytearray) -> ToEngine:
    """Return the server's message in a frame's body. Raises `msgspec.MsgspecError` on anything else."""
    message: ToEngine = _TO_ENGINE.decode(body)
    return message


def parse_from_engine(body: bytes | memoryview) -> FromEngine:
    """Return the engine's message in a frame's body. Raises `msgspec.MsgspecError` on anything else."""
    message: FromEngine = _FROM_ENGINE.decode(body)
    return message

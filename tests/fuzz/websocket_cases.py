"""Malformed websocket handshakes, and malformed frames after valid ones."""

import json

from server.fal.errors import REQUEST_ERRORS
from tests.fuzz import values
from tests.fuzz.http_cases import KEY, SOCKET_PATHS, filled

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RUN_OVER_SOCKET = b" /ws/"  # its answers are three messages; its inputs are JSON only

ODD_HANDSHAKE = {
    "Upgrade": (None, "", "h2c", "websocket, x", "WEBSOCKET"),
    "Connection": (None, "close", "keep-alive, Upgrade", "Upgrade, close", ",", "\xff"),
    "Sec-WebSocket-Key": (None, "", "x", "x" * 24, "\xff" * 16, "dGhlIHNhbXBsZSBub25jZQ==x"),
    "Sec-WebSocket-Version": (None, "", "12", "13, 12", "99999999999999999999"),
    "Sec-WebSocket-Protocol": ("", ",", "fal, x", "\xff", "x" * 5000),
    "Sec-WebSocket-Extensions": ("permessage-deflate; server_max_window_bits=99", "x;;", ";", "\xff", "x" * 9000),
    "Host": (None, "", "[", "ws.fal.run", "\xff"),
    "Origin": ("null", "\xff", "x" * 9000),
    "Authorization": (None, "Key x:y", "\xff"),
    "Content-Length": ("5", "-1", "99999999"),
    "Transfer-Encoding": ("chunked",),
    "X": ("x" * 9000, "y" * 40_000, "\x01"),
}


def handshake(rng, live, *, broken):
    """Return an upgrade request to one of the websocket routes."""
    path = filled(rng, rng.choice(SOCKET_PATHS), live)
    headers = {
        "Host": live["{host}"],
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Authorization": f"Key {KEY}",
    }
    method, version = "GET", "HTTP/1.1"
    for _ in range(rng.randint(1, 3) if broken else 0):
        match rng.randrange(8):
            case 0:
                method = rng.choice(("POST", "PUT", "HEAD", "get", "OPTIONS"))
            case 1:
                version = rng.choice(("HTTP/1.0", "HTTP/2.0", "HTTP/0.9"))
            case 2:
                path += rng.choice(
                    ("/\xff", "/%ff", "/" + "x" * 9000, "?" + "x" * 9000, "?max_buffering=٣", "/%00", "?\xe9")
                )
            case _:
                name = rng.choice(list(ODD_HANDSHAKE))
                headers[name] = rng.choice(ODD_HANDSHAKE[name])
    if not broken and rng.random() < 0.3:
        path += "?max_buffering=" + rng.choice(("1", "0", "-1", "x", "999999"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    data = f"{method} {path} {version}\r\n{lines}\r\n".encode("latin-1", "replace")
    return values.flipped(rng, data, 3) if broken and rng.random() < 0.2 else data


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=b"\x01\x02\x03\x04", length=None, width=None):
    """Return one client frame. `length`: the declared length; `width`: its bytes, 0, 2 or 8; `mask` None: unmasked."""
    claimed = len(payload) if length is None else length
    width = width if width is not None else 0 if claimed < 126 else 2 if claimed < 65536 else 8
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    short = claimed if width == 0 else 126 if width == 2 else 127
    size = b"" if width == 0 else claimed.to_bytes(width, "big")
    head = bytes([first, (0x80 if mask is not None else 0) | short]) + size
    return head + (payload if mask is None else mask + masked(payload, mask))


def masked(payload, mask):
    """Mask a payload (RFC 6455, 5.3)."""
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")


def conversation(rng, *, json_only):
    """Return frames for an open websocket, and whether they are an input that must be answered."""
    if rng.random() < 0.4:
        return _input(rng, json_only), True
    return b"".join(rng.choice(ODD_FRAMES)(rng, json_only) for _ in range(rng.choice((1, 1, 2, 5)))), False


def _input(rng, json_only):
    if json_only:
        text = rng.random() < 0.7
        data = values.json_body(rng, values.fields(rng))
    else:
        text = rng.random() < 0.5
        data = (values.json_body if text else values.msgpack_body)(rng, values.fields(rng))
    if text:
        data = data.decode("utf-8", "replace").encode()
    opcode = TEXT if text else BINARY
    if len(data) < 2 or rng.random() < 0.7:
        return frame(opcode, data)
    at = rng.randrange(1, len(data))
    between = frame(PING, b"between") if rng.random() < 0.5 else b""
    return frame(opcode, data[:at], fin=False) + between + frame(CONT, data[at:])


CLOSINGS = (b"", b"\x03", b"\x03\xe8", b"\x03\xed", b"\0\0", b"\xff\xff", b"\x03\xe8\xff")
BAD_TEXTS = (b"\xff", b"\xed\xa0\x80", b"\xf0\x9f", b'{"prompt": "\xc3(')
POOR_TEXTS = (b"", b"{}", b"[]", b"null", b'"' + b"x" * 70_000 + b'"')

# Frames that no client should send, by random generator and whether the websocket takes JSON only.
ODD_FRAMES = (
    lambda rng, _: frame(rng.choice((3, 4, 5, 6, 7, 11, 12, 15)), b"x"),
    lambda rng, _: frame(TEXT, rng.choice(BAD_TEXTS)),
    lambda rng, _: frame(TEXT, rng.choice(POOR_TEXTS)),
    lambda rng, _: frame(TEXT, b"{}", mask=None),
    lambda rng, _: frame(TEXT, b"{}", rsv=rng.randint(1, 7)),
    lambda rng, _: frame(CONT, b"x", fin=rng.random() < 0.5),
    lambda rng, _: frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"),
    lambda rng, _: frame(TEXT, b"{", fin=False) + frame(CONT, fin=False) * 500 + frame(CONT, b"}"),
    lambda rng, _: frame(PING, b"x" * rng.choice((0, 125, 126, 300))),
    lambda rng, _: frame(PING, b"x", fin=False),
    lambda rng, _: frame(PONG, b"never asked") * 20,
    lambda rng, _: frame(CLOSE, rng.choice(CLOSINGS)),
    lambda rng, _: frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"{}"),
    lambda rng, _: frame(BINARY, b"x" * 10, length=rng.choice((2**63, 2**64 - 1, 80 << 20, 2**40)), width=8),
    lambda rng, _: frame(BINARY, b"x" * 10, length=10, width=8),
    lambda rng, _: frame(BINARY, rng.randbytes(rng.randint(0, 200))),
    lambda rng, _: rng.randbytes(rng.randint(1, 200)),
    lambda rng, json_only: _cut(rng, _input(rng, json_only)),
)


def _cut(rng, data):
    return data[: rng.randrange(len(data))]


def failure(data):
    """Return the 5xx status that a text message of the server means, or None."""
    try:
        said = json.loads(data)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    status = said.get("status") if isinstance(said.get("status"), int) else 0
    status = max(status, REQUEST_ERRORS.get(str(said.get("error", "")).lower(), 0))
    return status if status >= 500 else None

"""The fuzzer's checks detect a server that violates the protocol."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from tests.fuzz.oracle import Conversation, Findings
from tests.fuzz.websocket_cases import CLOSE, PING, PONG, TEXT, frame

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nx-fal-request-id: 1\r\ncontent-length: 4\r\n\r\n"
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def unmasked(opcode, payload):
    """Return a server's frame, unmasked."""
    return bytes([0x80 | opcode, len(payload)]) + payload


ANSWER, PONGED, BYE = unmasked(TEXT, b"{}"), unmasked(PONG, b"fuzz"), unmasked(CLOSE, b"\x03\xe8")


async def found(tmp_path, said, *, owed=False):
    """Return the kinds of findings of one conversation with a server that sends this and closes."""
    (tmp_path / "log").touch()
    findings = Findings(tmp_path / "log")
    case = SimpleNamespace(number=1, opening=b"GET / HTTP/1.1\r\n\r\n", frames=frame(PING, b"") * owed, owed=owed)

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        conversation = Conversation(listener.getsockname()[1], case, findings)
        await asyncio.gather(asyncio.to_thread(serve), conversation.hold())
    return [kind for kind, _, _ in findings.found]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", "closed without a word"),
        (HEAD + b"goo", "broken off"),
        (HEAD.replace(b"x-fal-request-id", b"x-other") + b"good", "no request id"),
        (HEAD.replace(b"200", b"500") + b"null", "status 500"),
        (HEAD.replace(b"200", b"400") + b"null", "error that is no JSON"),
    ],
)
async def test_a_bad_answer_is_found(tmp_path, said, kind):
    assert kind in await found(tmp_path, said)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (UPGRADE, "broken off"),
        (UPGRADE + PONGED + BYE, "broken off"),
        (UPGRADE + ANSWER, "broken off"),
        (UPGRADE + ANSWER + unmasked(CLOSE, b"\x03\xf3"), "closed with 1011"),
        (UPGRADE + unmasked(TEXT, b'{"status": 500}') + PONGED + BYE, "status 500 in a message"),
    ],
)
async def test_a_socket_that_fails_is_found(tmp_path, said, kind):
    assert kind in await found(tmp_path, said, owed=True)


async def test_good_answers_are_not(tmp_path):
    assert await found(tmp_path, HEAD + b"good") == []
    assert await found(tmp_path, UPGRADE + ANSWER + PONGED + BYE, owed=True) == []

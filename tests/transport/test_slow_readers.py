"""Clients which take their answers slowly: cut below a minimum rate, else waited for."""

import asyncio

import pytest

from tests.support.raw_connections import PATIENCE_S, TEXT, post

pytestmark = pytest.mark.anyio

MB = 1024 * 1024


async def read_slowly(client, *, piece=256 * 1024, pause=0.02):
    """The bytes that come at about 12 MB a second, until the server closes."""
    got = 0
    client.reader._limit = piece  # asyncio would read on in advance
    while data := await client.reader.read(piece):
        got += len(data)
        await asyncio.sleep(pause)
    return got


@pytest.mark.parametrize("path", ["/flood", "/last-flood", "/pieces"])
async def test_who_reads_too_slowly_is_cut(path, serve):
    async with serve(send_timeout=0.2, min_send_rate=1000 * MB) as server, server.connect() as client:
        client.send(post(path=path, extra=b"Connection: close\r\n"))

        try:
            got = await asyncio.wait_for(read_slowly(client), PATIENCE_S)
        except ConnectionResetError:
            got = 0

    assert got < 32 * MB


@pytest.mark.parametrize("path", ["/flood", "/last-flood", "/pieces"])
async def test_who_keeps_the_rate_is_waited_for(path, serve):
    async with serve(send_timeout=0.2, min_send_rate=MB) as server, server.connect() as client:
        client.send(post(path=path, extra=b"Connection: close\r\n"))

        got = await asyncio.wait_for(read_slowly(client), 3 * PATIENCE_S)

    assert got > 32 * MB


async def test_a_stream_which_waits_for_the_app_is_not_cut(serve):
    async with serve(send_timeout=0.1, min_send_rate=1000 * MB) as server, server.connect() as client:
        client.send(post(path="/events"))
        await client.reader.readuntil(b"first")
        await asyncio.sleep(0.5)
        server.app.release.set()

        assert await asyncio.wait_for(client.reader.readuntil(b"last"), PATIENCE_S)


async def test_a_websocket_which_is_not_read_is_cut(serve):
    async with serve(send_timeout=0.2, max_frame_rate=10**6) as server, server.connect() as client:
        await client.upgrade()
        client.writer.transport.pause_reading()
        for _ in range(1000):
            client.send(bytes([TEXT, 0x80 | 126]) + (60_000).to_bytes(2, "big") + bytes(4) + b"a" * 60_000)

        await asyncio.wait_for(server.app.ended.wait(), PATIENCE_S)

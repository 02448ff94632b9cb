"""How connections end, and which one makes way: answers before the body, unanswered Closes, probes, ambiguity."""

import asyncio
import contextlib
import http.client
import socket

import pytest

from tests.support.raw_connections import CLOSE, PATIENCE_S, TEXT, UPGRADE, post

pytestmark = pytest.mark.anyio

CHUNKED = b"POST /early HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
UNFINISHED = {"length": post(b"half", length=100, path="/early"), "chunked": CHUNKED}


# --- an answer before the body's end


@pytest.mark.parametrize("request_", UNFINISHED.values(), ids=UNFINISHED)
async def test_an_answer_before_the_bodys_end_closes_the_connection(request_, serve):
    async with serve() as server, server.connect() as client:
        client.send(request_)

        status, headers, _ = await client.answer()

        assert (status, headers["connection"]) == (200, "close")
        assert await client.rest() == b""


async def test_a_body_which_came_whole_keeps_the_connection(serve):
    async with serve() as server, server.connect() as client:
        for _ in range(2):
            client.send(post(b"whole", path="/early"))
            _, headers, _ = await client.answer()

    assert "connection" not in headers


async def test_a_body_which_is_sent_after_the_answer_is_no_next_request(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(length=1000, path="/early"))
        await client.answer()

        client.send(post(path="/held"))

        assert await client.rest() == b""
    assert not server.app.started.is_set()


async def test_who_sends_all_before_reading_can_read_the_answer(serve):
    async with serve() as server:

        def send_all_then_read():
            connection = http.client.HTTPConnection("127.0.0.1", server.listeners.http.port, timeout=PATIENCE_S)
            with contextlib.closing(connection):
                connection.request("POST", "/early", bytes(5_000_000))
                return connection.getresponse().read()

        assert b"early" in await asyncio.to_thread(send_all_then_read)


async def test_what_comes_after_an_answer_is_dropped_for_a_while_only(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(length=10**12, path="/early"))
        await client.answer()

        async def send_on():
            with contextlib.suppress(ConnectionError):
                while True:
                    client.send(bytes(1000))
                    await client.writer.drain()
                    await asyncio.sleep(0.01)

        await asyncio.wait_for(send_on(), PATIENCE_S)


async def test_who_asks_first_is_not_told_to_send_what_is_not_read(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(length=100, path="/early", extra=b"Expect: 100-continue\r\n"))

        status, headers, _ = await client.answer()

    assert (status, headers["connection"]) == (200, "close")


async def test_http_1_0_is_answered_and_closed(serve):
    async with serve() as server, server.connect() as client:
        client.send(b"POST /early HTTP/1.0\r\nContent-Length: 100\r\n\r\nhalf")

        status, headers, _ = await client.answer()

        assert (status, headers["connection"]) == (200, "close")
        assert await client.rest() == b""


async def test_an_answer_waits_for_the_one_before_it(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(path="/held") + UNFINISHED["length"])
        await server.app.started.wait()
        server.app.release.set()

        first, second = await client.answer(), await client.answer()

        assert (first[2]["held"], "connection" in first[1]) == (True, False)
        assert (second[2]["early"], second[1]["connection"]) == (True, "close")


# --- who makes way


@pytest.mark.parametrize("request_", UNFINISHED.values(), ids=UNFINISHED)
async def test_who_was_answered_and_still_sends_makes_way(request_, serve):
    async with serve(max_connections=1) as server, server.connect() as answered:
        answered.send(request_)
        await answered.answer()
        async with server.connect() as client:
            client.send(post())

            assert (await client.answer())[0] == 200


async def test_a_socket_whose_close_is_not_answered_makes_way(serve):
    async with serve(max_connections=1) as server, server.connect() as closed:
        await closed.upgrade(UPGRADE.replace(b"/ws", b"/closed"))
        assert (await closed.frame())[0] == CLOSE
        async with server.connect() as client:
            client.send(post())

            assert (await client.answer())[0] == 200
        assert await closed.rest() == b""


async def test_an_open_socket_does_not_make_way(serve):
    async with serve(max_connections=1) as server, server.connect() as open_:
        await open_.upgrade()
        async with server.connect() as client:
            client.send(post())
            assert (await client.answer())[0] == 429

        open_.send_frame(TEXT, b"a")
        assert await open_.frame() == (TEXT, b"a")


async def test_an_answer_that_is_not_taken_makes_way_once_it_is_whole(serve):
    async with serve(max_connections=1) as server, server.connect() as reader:
        reader.writer.transport.pause_reading()
        reader.send(post(path="/last-flood"))
        await asyncio.wait_for(server.app.ended.wait(), PATIENCE_S)
        async with server.connect() as client:
            client.send(post())

            assert (await client.answer())[0] == 200


async def test_who_has_shown_a_key_makes_way_after_who_has_not(serve):
    async with serve(max_connections=2) as server, server.connect() as known, server.connect() as stranger:
        for client, path in ((known, "/known"), (stranger, "/early")):
            client.send(post(path=path))
            await client.answer()
        async with server.connect() as newcomer:
            newcomer.send(post(path="/held"))
            assert await stranger.rest() == b""

            known.send(post())
            assert (await known.answer())[0] == 200


async def test_who_sends_headers_by_the_byte_makes_way_before_who_has_shown_a_key(serve):
    async with serve(max_connections=2) as server, server.connect() as known, server.connect() as slow:
        known.send(post(path="/known"))
        await known.answer()
        slow.send(b"POST / HTTP/1.1\r\nHo")
        async with server.connect() as newcomer:
            newcomer.send(post(path="/held"))
            await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)

            known.send(post())
            assert (await known.answer())[0] == 200
        assert await slow.rest() == b""


async def test_a_probe_is_answered_although_all_connections_are_in_use(serve):
    async with serve(max_connections=1) as server, server.connect() as served:
        served.send(post(path="/held"))
        await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)
        async with server.connect() as probe:
            probe.send(b"GET /health?verbose HTTP/1.1\r\nHost: h\r\n\r\n")

            status, headers, _ = await probe.answer()

    assert (status, headers["connection"]) == (200, "close")


# --- what two servers may read in two ways


@pytest.mark.parametrize(
    "head",
    [
        b"Host: a\r\nHost: b",
        b"Host: a\r\nHost: a",
        b"Host: a\r\nContent-Length: 3\r\nContent-Length: 3",
        b"Host: a\r\nContent-Length: 3\r\nContent-Length: 4",
        b"Host: a\r\nContent-Length: 3, 3",
        b"Host: a\r\nContent-Length: +3",
        b"Host: a\r\nContent-Length : 3",
        b"Host: a\r\nX: b\r\n Content-Length: 3",
        b"Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3",
        b"Host: a\r\nTransfer-Encoding: gzip, chunked",
        b"Host: a\r\nTransfer-Encoding: chunked, identity",
        b"Host: a\r\nTransfer-Encoding: xchunked",
        b"Host: a\nContent-Length: 3",
    ],
)
async def test_an_ambiguous_request_gets_400(head, serve):
    async with serve() as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\n" + head + b"\r\n\r\nabc")

        status, headers, body = await client.answer()

    assert (status, headers["connection"], body["error_type"]) == (400, "close", "bad_request")


async def test_chunks_in_http_1_0_get_400(serve):
    async with serve() as server, server.connect() as client:
        client.send(CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"))

        assert (await client.answer())[0] == 400


async def test_a_websocket_with_two_hosts_gets_400(serve):
    async with serve() as server, server.connect() as client:
        client.send(UPGRADE.replace(b"Host: h", b"Host: h\r\nHost: i"))

        assert (await client.answer())[0] == 400


async def test_a_websocket_behind_a_request_that_is_being_answered_gets_400(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(path="/held") + UPGRADE)

        assert (await client.answer())[0] == 400


async def test_a_trailer_is_no_header(serve):
    async with serve() as server, server.connect() as client:
        client.send(CHUNKED.replace(b"/early", b"/") + b"0\r\nX-Late: b\r\n\r\n")

        assert (await client.answer())[2]["headers"] == ["host", "transfer-encoding"]


@pytest.mark.parametrize("line", [b"X: " + b"a" * 30_000, b"X: a\r\n" * 5000], ids=["one", "many"])
async def test_endless_trailers_get_431(line, serve):
    async with serve(max_header_bytes=20_000) as server, server.connect() as client:
        client.send(CHUNKED.replace(b"/early", b"/"))
        await asyncio.wait_for(server.app.coming.wait(), PATIENCE_S)
        client.send(b"0\r\n" + line)

        assert (await client.answer())[0] == 431


# --- websockets


async def test_a_close_between_fragments_is_answered_with_its_own_code(serve):
    async with serve() as server, server.connect() as client:
        await client.upgrade()
        client.send_frame(TEXT & 0x0F, b"a")
        client.send_frame(CLOSE, (4001).to_bytes(2, "big"))

        first, payload = await client.frame()

    assert (first, int.from_bytes(payload[:2], "big")) == (CLOSE, 4001)


# --- the kernel's part


async def test_the_kernel_keeps_little_for_who_does_not_read(serve):
    async with serve(send_buffer_bytes=32 * 1024) as server, server.connect():
        bound = server.listeners.http.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    assert 32 * 1024 <= bound <= 64 * 1024

"""How connections end, and which one makes way: answers before the body, unanswered Closes, probes, ambiguity."""

import asyncio
import contextlib
import http.client
import socket
import ssl

import pytest

from server.transport import tls
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


async def unread(server, reader, path):
    """Ask for 32 MB, which are not read."""
    reader.writer.transport.pause_reading()
    reader.send(post(path=path))
    await asyncio.wait_for(server.app.ended.wait(), PATIENCE_S)


async def read_rest(reader):
    """Read them."""
    reader.writer.transport.resume_reading()
    await asyncio.wait_for(reader.reader.readexactly(32 * 1024 * 1024), PATIENCE_S)


@pytest.mark.parametrize("path", ["/last-flood", "/kept-flood"])
async def test_an_answer_that_is_not_taken_makes_way_once_it_is_whole(path, serve):
    async with serve(max_connections=1) as server, server.connect() as reader:
        await unread(server, reader, path)
        async with server.connect() as client:
            client.send(post())

            assert (await client.answer())[0] == 200


@pytest.mark.parametrize("path", ["/last-flood", "/kept-flood"])
async def test_who_reads_the_rest_of_an_answer_makes_way_after_who_asks_for_nothing(path, serve):
    async with serve(max_connections=2) as server, server.connect() as reader, server.connect() as known:
        known.send(post(path="/known"))
        await known.answer()
        await unread(server, reader, path)
        async with server.connect() as newcomer:
            assert await known.rest() == b""

            await read_rest(reader)
            newcomer.send(post())
            assert (await newcomer.answer())[0] == 200


async def test_who_has_read_an_answer_makes_way_as_before(serve):
    async with serve(max_connections=2) as server, server.connect() as reader, server.connect() as known:
        await unread(server, reader, "/kept-flood")
        known.send(post(path="/known"))
        await known.answer()
        await read_rest(reader)
        async with server.connect():
            await reader.rest()

            known.send(post())
            assert (await known.answer())[0] == 200


async def test_newcomers_do_not_throw_one_another_out(serve):
    async with serve(max_connections=32) as server, contextlib.AsyncExitStack() as clients:
        for _ in range(31):
            held = await clients.enter_async_context(server.connect())
            held.send(post(path="/held"))
        newcomers = [await clients.enter_async_context(server.connect()) for _ in range(3)]
        for newcomer in newcomers:
            newcomer.send(post())
            assert (await newcomer.answer())[0] == 200


async def test_beyond_the_room_for_newcomers_the_longest_makes_way(serve):
    async with serve(max_connections=32) as server, contextlib.AsyncExitStack() as clients:
        first, *others = [await clients.enter_async_context(server.connect()) for _ in range(35)]

        assert await first.rest() == b""
        for other in others:
            other.send(post())
            assert (await other.answer())[0] == 200


async def test_requests_at_once_are_those_of_who_has_shown_a_key_in_one_of_them(serve):
    async with serve(max_connections=2) as server, server.connect() as known, server.connect() as stranger:
        known.send(post(path="/known") + post(path="/early"))
        await known.answer()
        await known.answer()
        stranger.send(post())
        await stranger.answer()
        async with server.connect():
            assert await stranger.rest() == b""

            known.send(post())
            assert (await known.answer())[0] == 200


async def left_while_answered(server, client):
    client.send(post(path="/watched"))
    await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)
    client.writer.close()


async def left_while_unread(server, client):
    await unread(server, client, "/kept-flood")
    client.writer.transport.abort()


async def left_as_a_socket(server, client):
    await client.upgrade()
    client.writer.close()


async def closed_as_a_socket(server, client):
    await client.upgrade(UPGRADE.replace(b"/ws", b"/closed"))
    client.send_frame(CLOSE, (1000).to_bytes(2, "big"))


async def answered_early(server, client):
    client.send(UNFINISHED["length"])
    await client.answer()


async def refused(server, client):
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")


async def refused_as_a_socket(server, client):
    client.send(UPGRADE.replace(b"Version: 13", b"Version: 1"))


async def silent(server, client):
    client.writer.write_eof()


@pytest.mark.parametrize(
    "end",
    [
        left_while_answered,
        left_while_unread,
        left_as_a_socket,
        closed_as_a_socket,
        answered_early,
        refused,
        refused_as_a_socket,
        silent,
    ],
)
async def test_every_end_gives_the_place_back(end, serve):
    async with serve() as server, server.connect() as client:
        await end(server, client)

        await server.empty()


@pytest.mark.parametrize("next_", [post(), b"NO HTTP\r\n\r\n"], ids=["left", "refused"])
async def test_every_request_of_a_connection_that_ends_is_told(next_, serve):
    async with serve() as server, server.connect() as client:
        client.send(post(path="/watched") + next_)
        await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)
        client.writer.close()

        await asyncio.wait_for(server.app.ended.wait(), PATIENCE_S)


async def test_after_a_refusal_comes_no_answer(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(path="/held"))
        await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)
        client.send(b"NO HTTP\r\n\r\n")
        assert (await client.answer())[0] == 400
        server.app.release.set()

        assert await client.rest() == b""


async def test_a_line_end_after_a_request_does_not_end_it(serve):
    async with serve(header_timeout=0.05) as server, server.connect() as client:
        client.send(post(path="/held"))
        await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)
        client.send(b"\r\n")
        await asyncio.sleep(0.3)
        server.app.release.set()

        assert (await client.answer())[0] == 200


async def test_an_answer_before_a_websocket_has_to_be_read_too(serve):
    async with serve(send_timeout=0.2, min_send_rate=10**9) as server, server.connect() as client:
        await unread(server, client, "/kept-flood")
        client.send(UPGRADE)

        await server.empty()


async def test_a_websocket_behind_an_answer_that_waits_lives_on_once_that_is_read(serve, tmp_path):
    request = post(extra=b"x" * 8000 + b": 1\r\n")  # its answer has all names: as many bytes
    async with serve(send_timeout=0.3, tls_port=0) as server:
        trust = ssl.create_default_context(cafile=tls.TlsFiles(tmp_path / "tls").ca)
        port = server.listeners.https.port
        async with server.connect(port=port, ssl=trust, server_hostname="localhost") as client, asyncio.timeout(30):
            client.send(request)
            await client.answer()
            [http_] = server.room._rank_of
            client.writer.transport.pause_reading()
            asked = 0
            while not http_.transport.get_write_buffer_size():
                before, asked = http_.cycle, asked + 1
                client.send(request)
                while http_.cycle is before or http_._serving:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            client.send(UPGRADE)
            while http_ in server.room._rank_of:  # noqa: ASYNC110
                await asyncio.sleep(0)

            client.writer.transport.resume_reading()
            for _ in range(asked):
                await client.answer()
            await client.reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(1)  # more than three times the deadline, which must not run
            client.send_frame(TEXT, b"a")
            assert await client.frame() == (TEXT, b"a")


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


UPGRADED_BODIES = [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]


@pytest.mark.parametrize("body", UPGRADED_BODIES)
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_a_body_that_would_be_taken_for_another_protocol_gets_400(protocol, body, serve):
    async with serve() as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n" + body)
        status, _, answer = await client.answer()

        assert (status, "leave Upgrade out (`curl --http1.1`" in answer["detail"]) == (400, True)
        assert "HttpClient.Version.HTTP_1_1" in answer["detail"]


async def test_who_offers_another_protocol_without_a_body_is_answered_as_ever(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(extra=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"))

        assert (await client.answer())[0] == 200


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
        bound = server.listeners.http.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    assert 32 * 1024 <= bound <= 64 * 1024

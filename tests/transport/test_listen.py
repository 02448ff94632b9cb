"""Sockets, deadlines and limits, against raw connections on loopback."""

import asyncio
import contextlib
import os
import signal
import ssl

import pytest
from uvicorn.server import ServerState

from server.settings import Settings, SettingsError
from server.transport import listen, sockets, tls
from server.transport.room import Room
from tests.support.raw_connections import CLOSE, PATIENCE_S, PING, PONG, TEXT, UPGRADE, App, Running, post

pytestmark = pytest.mark.anyio

# --- sockets ------------------------------------------------------------------------------------------------------


async def test_http_and_https_share_one_app_and_one_lifespan(serve, tmp_path):
    async with serve(tls_port=0) as server:
        trust = ssl.create_default_context(cafile=tls.TlsFiles(tmp_path / "tls").ca)
        async with (
            server.connect() as plain,
            server.connect(port=server.listeners.https.port, ssl=trust, server_hostname="localhost") as secure,
        ):
            plain.send(post())
            secure.send(post())

            schemes = [(await client.answer())[2]["scheme"] for client in (plain, secure)]

    assert schemes == ["http", "https"]
    assert server.app.lifespans == 1


async def test_each_address_of_the_default_host_is_served(serve):
    async with serve() as server:
        for each in server.listeners.http.sockets:
            address, port = each.getsockname()[:2]
            async with server.connect(host=address, port=port) as client:
                client.send(post())

                assert (await client.answer())[0] == 200


async def test_a_port_in_use_is_said(serve, tmp_path):
    async with serve() as server:
        with pytest.raises(SettingsError, match="is in use"):
            sockets.bind(Settings(data_dir=tmp_path, port=server.listeners.http.port))


# --- stopping -----------------------------------------------------------------------------------------------------


async def test_sigterm_lets_a_running_request_finish(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(path="/held"))
        await server.app.started.wait()

        os.kill(os.getpid(), signal.SIGTERM)
        server.app.release.set()

        assert (await client.answer())[2]["held"]
        await asyncio.wait_for(server.task, PATIENCE_S)


async def test_sigterm_refuses_new_connections_while_it_drains(tmp_path):
    settings = Settings(data_dir=tmp_path, port=0)
    app = App()
    listeners, ready, closing = sockets.bind(settings), asyncio.Event(), asyncio.Event()
    calls = {"on_ready": ready.set, "on_close": closing.set}
    room = Room(1)
    task = asyncio.create_task(listen.serve(app, tuple(listeners), settings, room=room, **calls))
    await ready.wait()
    server, port = Running(app, room, listeners, task), listeners.http.port
    async with server.connect() as held:
        held.send(post(path="/held"))
        await app.started.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(closing.wait(), PATIENCE_S)

        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

        app.release.set()
        await held.answer()
    await asyncio.wait_for(task, PATIENCE_S)


async def test_a_lame_duck_takes_new_connections_and_keeps_none(serve):
    async with serve(lameduck=2) as server:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)  # the signal's turn
        async with server.connect() as client:
            client.send(post())

            status, headers, _ = await client.answer()

            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""
        await asyncio.wait_for(server.task, PATIENCE_S)


async def test_a_lame_duck_keeps_its_websockets_to_the_end(serve):
    loop = asyncio.get_running_loop()
    async with serve(lameduck=1) as server, server.connect() as client:
        await client.upgrade()
        began = loop.time()
        os.kill(os.getpid(), signal.SIGTERM)

        assert await client.frame() == (TEXT, b"finished")
        assert loop.time() - began >= 1
        client.send_frame(CLOSE, (1000).to_bytes(2, "big"))
        await asyncio.wait_for(server.task, PATIENCE_S)


async def test_the_lame_ducks_time_is_part_of_the_drains(serve, caplog):
    loop = asyncio.get_running_loop()
    async with serve(lameduck=1, drain_timeout=1) as server, server.connect() as client:
        client.send(post(path="/held"))
        await server.app.started.wait()
        began = loop.time()

        await server.stop()

    assert 1 <= loop.time() - began < 2
    assert "timeout graceful shutdown exceeded" in caplog.text


async def test_a_request_that_never_ends_does_not_keep_the_server(serve, caplog):
    async with serve(drain_timeout=1) as server, server.connect() as client:
        client.send(post(path="/held"))
        await server.app.started.wait()

        await server.stop()

    assert "timeout graceful shutdown exceeded" in caplog.text


async def test_a_websocket_may_send_its_last_word_when_the_server_drains(serve):
    async with serve() as server, server.connect() as client:
        await client.upgrade()

        os.kill(os.getpid(), signal.SIGTERM)

        assert await client.frame() == (TEXT, b"finished")
        assert await client.frame() == (CLOSE, (1000).to_bytes(2, "big"))
        client.send_frame(CLOSE, (1000).to_bytes(2, "big"))
        await asyncio.wait_for(server.task, PATIENCE_S)


# --- deadlines ----------------------------------------------------------------------------------------------------


async def test_headers_that_do_not_end_get_408(serve):
    async with serve(header_timeout=0.2) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\n")

        status, headers, body = await client.answer()

    assert status == 408
    assert headers["x-fal-request-id"]
    assert "headers did not arrive" in body["detail"]


async def test_headers_that_begin_behind_a_request_and_do_not_end_get_408(serve):
    async with serve(header_timeout=0.2) as server, server.connect() as client:
        client.send(post() + b"GET / HTTP/1.1\r\nHo")
        assert (await client.answer())[0] == 200
        client.send(b"s")  # ends the wait for a next request

        assert (await client.answer())[0] == 408


async def test_a_silent_connection_is_closed_without_a_word(serve):
    async with serve(header_timeout=0.2) as server, server.connect() as client:
        assert await client.rest() == b""


async def test_blank_lines_do_not_keep_an_idle_connection(serve):
    async with serve(header_timeout=0.3) as server, server.connect() as client:
        client.send(post())
        await client.answer()

        async def drip():
            while True:
                client.send(b"\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await client.rest() == b""
        dripping.cancel()


async def test_a_body_that_stalls_gets_408_and_the_app_is_told(serve):
    async with serve(body_timeout=0.2) as server, server.connect() as client:
        client.send(post(b"half", length=100))

        status, _, body = await client.answer()

        await asyncio.wait_for(server.app.ended.wait(), PATIENCE_S)
        assert not client.reader.at_eof(), "the app heard of it only from the end of the connection"
    assert status == 408
    assert "body did not arrive" in body["detail"]


async def test_a_body_that_stalls_after_a_fast_start_is_not_forgiven_more(serve):
    async with serve(body_timeout=0.2, min_body_rate=1) as server, server.connect() as client:
        client.send(post(bytes(1_000_000), length=2_000_000))

        status, _, _ = await client.answer()

    assert status == 408


async def test_a_slow_body_that_keeps_the_rate_is_waited_for(serve):
    async with serve(body_timeout=1, min_body_rate=100) as server, server.connect() as client:
        client.send(post(length=3000))
        for _ in range(15):
            await asyncio.sleep(0.1)
            client.send(bytes(200))

        status, _, body = await client.answer()

    assert (status, body["length"]) == (200, 3000)


async def test_a_client_is_not_blamed_for_an_app_that_reads_late(serve):
    async with serve(body_timeout=0.2) as server, server.connect() as client:
        client.send(post(bytes(2_000_000), path="/late-reader"))
        await asyncio.sleep(0.6)
        server.app.release.set()

        status, _, body = await client.answer()

    assert (status, body["length"]) == (200, 2_000_000)


async def test_an_answer_that_nobody_reads_is_cut(serve):
    async with serve(send_timeout=0.2) as server, server.connect() as client:
        client.send(post(path="/flood"))

        await asyncio.wait_for(server.app.ended.wait(), PATIENCE_S)


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b"a" * 20_000 + b"\r\n\r\n", b"a" * 400_000], ids=["whole", "endless"])
async def test_headers_beyond_the_limit_get_431(rest, serve):
    async with serve(max_header_bytes=20_000) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-Long: " + rest)

        status, _, body = await client.answer()

    assert status == 431
    assert "20000" in body["detail"]


async def test_headers_within_the_limit_pass(serve):
    async with serve() as server, server.connect() as client:
        client.send(post(extra=b"X-Long: " + b"a" * 16_000 + b"\r\n"))

        assert (await client.answer())[0] == 200


async def test_one_connection_too_many_gets_429(serve):
    async with serve(max_connections=1) as server, server.connect() as served:
        served.send(post(path="/held"))
        await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)
        async with server.connect() as client:
            client.send(post())

            status, headers, body = await client.answer()

    assert status == 429
    assert headers["x-fal-error-type"] == body["error_type"] == "concurrent_requests_limit"


@pytest.mark.parametrize("said", [b"", b"POST / HTTP/1.1\r\nHost: h\r\n", post()], ids=["nothing", "drip", "served"])
async def test_an_idle_connection_gives_way_to_one_too_many(said, serve):
    async with serve(max_connections=1) as server, server.connect() as idle:
        idle.send(said)
        if said == post():
            await idle.answer()
        async with server.connect() as client:
            client.send(post())

            status, _, _ = await client.answer()

        assert await idle.rest() == b""
    assert status == 200


async def test_connections_that_say_nothing_are_counted_too(serve):
    async with serve(max_connections=2, header_timeout=60) as server, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(server.connect()) for _ in range(6)]

        async with asyncio.timeout(PATIENCE_S):
            while sum(client.reader.at_eof() for client in silent) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        for client in silent:
            if not client.reader.at_eof():
                client.send(post())
                assert (await client.answer())[0] == 200


async def test_who_is_refused_in_the_middle_of_an_upload_can_read_why(serve):
    async with serve(max_connections=1) as server, server.connect() as served:
        served.send(post(path="/held"))
        await asyncio.wait_for(server.app.started.wait(), PATIENCE_S)
        async with server.connect() as client:
            client.send(post(bytes(4_000_000)))
            await asyncio.wait_for(client.writer.drain(), PATIENCE_S)

            assert (await client.answer())[0] == 429


async def test_what_is_no_http_gets_400_in_json(serve):
    async with serve() as server, server.connect() as client:
        client.send(b"\x16\x03\x01\x02\x00\r\n\r\n")

        status, headers, body = await client.answer()

    assert (status, headers["content-type"]) == (400, "application/json")
    assert body["error_type"] == "bad_request"


async def test_answers_do_not_name_the_server_software(serve):
    async with serve() as server, server.connect() as client:
        client.send(post())

        assert "server" not in (await client.answer())[1]


# --- websockets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "answered"), [(b"", 1000), (b"\x03\xe8", 1000), (b"\x0f\xa1bye", 4001)])
async def test_a_close_frame_is_answered(sent, answered, serve):
    async with serve() as server, server.connect() as client:
        await client.upgrade()
        client.send_frame(CLOSE, sent)

        first, payload = await client.frame()

    assert (first, int.from_bytes(payload[:2], "big")) == (CLOSE, answered)


async def test_a_message_beyond_the_limit_closes_with_1009(serve):
    async with serve(max_body_bytes=100) as server, server.connect() as client:
        await client.upgrade()
        client.send(bytes([TEXT, 0x80 | 126]) + (101).to_bytes(2, "big") + bytes(4 + 101))

        first, payload = await client.frame()

    assert (first, int.from_bytes(payload[:2], "big")) == (CLOSE, 1009)


async def test_a_peer_that_answers_no_ping_is_closed(serve):
    async with serve(ping_interval=0.2) as server, server.connect() as client:
        await client.upgrade()

        frames = await client.rest()

    assert (1011).to_bytes(2, "big") + b"keepalive ping timeout" in frames


async def test_a_handshake_that_can_not_be_parsed_is_answered(serve):
    async with serve() as server, server.connect() as client:
        client.send(UPGRADE.replace(b"/ws", b"/ws?fal_jwt_token=" + b"a" * 9000))

        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 414")


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Version: 13", b"Version: 12", 400),
        (b"GET /ws", b"POST /ws", 405),
        (b"Host: h", b"Host: h\r\nX: " + b"a" * 9000, 431),
        (b"Host: h", b"Host: h\r\nContent-Length: 5", 400),
    ],
    ids=["version", "method", "long header", "body"],
)
async def test_a_malformed_handshake_is_refused_as_any_request_is(old, new, status, serve):
    async with serve() as server, server.connect() as client:
        client.send(UPGRADE.replace(old, new))

        answer = await client.answer()

    assert answer[0] == status
    assert answer[1]["x-fal-request-id"]
    assert answer[2]["detail"]


async def test_text_that_is_no_utf_8_ends_the_socket_and_is_no_fault_of_ours(serve, caplog):
    async with serve() as server, server.connect() as client:
        await client.upgrade()

        client.send_frame(TEXT, b"\xff")
        first, payload = await client.frame()
        await asyncio.wait_for(server.app.ended.wait(), PATIENCE_S)

    assert (first, int.from_bytes(payload[:2], "big")) == (CLOSE, 1007)
    assert server.app.failure == "ClientDisconnected"
    assert caplog.text == ""


# --- the pace of websockets


class Transport:
    """A connection on which nothing moves."""

    def __init__(self):
        self.reading = True
        self.written = b""

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def write(self, data):
        self.written += data

    def is_closing(self):
        return False

    def get_extra_info(self, name):
        return None

    def set_write_buffer_limits(self, high):
        """It has no buffer."""

    def get_write_buffer_size(self):
        return 0


def held_socket(tmp_path, **options):
    """A websocket before its handshake, and the transport that it is on."""
    settings = Settings(data_dir=tmp_path, **options)
    config = listen._config(App(), settings, Room(1))
    config.load()
    socket, transport = config.ws_protocol_class(config, ServerState(), {}), Transport()
    socket.connection_made(transport)
    return socket, transport


async def test_frames_that_come_too_fast_wait(tmp_path):
    socket, transport = held_socket(tmp_path, max_frame_rate=1)

    socket.data_received(UPGRADE + bytes([PING, 0x80, 0, 0, 0, 0]) * 30)
    pongs, reading = transport.written.count(bytes([PONG, 0])), transport.reading

    assert pongs == 1
    assert not reading


async def test_frames_that_had_to_wait_are_taken_in_the_end(serve):
    async with serve(max_frame_rate=10) as server, server.connect() as client:
        await client.upgrade()
        client.send(bytes([PING, 0x80, 0, 0, 0, 0]) * 14)

        heard = [await client.frame() for _ in range(14)]

    assert heard == [(PONG, b"")] * 14


async def test_nothing_is_read_from_a_client_that_does_not_read(tmp_path):
    socket, transport = held_socket(tmp_path)
    socket.data_received(UPGRADE)

    socket.pause_writing()
    while_full = transport.reading
    socket.resume_writing()

    assert (while_full, transport.reading) == (False, True)


async def test_a_message_in_many_fragments_arrives_whole(serve):
    async with serve() as server, server.connect() as client:
        await client.upgrade()
        client.send_frame(TEXT & 0x0F, b"a")
        for _ in range(50):
            client.send_frame(0x00)
        client.send_frame(0x80, b"z")

        assert await client.frame() == (TEXT, b"az")


async def test_messages_that_are_coming_on_all_sockets_share_one_budget(serve):
    async with serve(max_body_bytes=100_000, body_budget_bytes=100_000) as server:
        async with server.connect() as first, server.connect() as second:
            for client in (first, second):
                await client.upgrade()
                client.send(bytes([TEXT, 0xFF]) + (90_000).to_bytes(8, "big") + bytes(4) + b"a" * 60_000)
            code, payload = await second.frame()
        async with server.connect() as third:
            await third.upgrade()
            third.send_frame(TEXT, b"a")
            answer = await third.frame()

    assert (code, int.from_bytes(payload[:2], "big")) == (CLOSE, 1013)
    assert answer == (TEXT, b"a")

"""A server in this process with a bare app, and raw connections to it: `async with serve(…) as server`."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import HTTPConnection

from server.access.auth import note_known
from server.settings import Settings
from server.transport import listen, sockets
from server.transport.room import Room
from server.transport.sockets import Listeners

# Longer than any deadline set below; a test that waits this long has failed.
PATIENCE_S = 10
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CLOSE = 0x88
PING = 0x89
PONG = 0x8A
TEXT = 0x81


class App:
    """A bare ASGI app: what the tests ask of it is in the path."""

    def __init__(self):
        self.lifespans = 0
        self.started = asyncio.Event()
        self.coming = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.failure = None

    async def __call__(self, scope, receive, send):
        match scope["type"], scope.get("path"):
            case "lifespan", _:
                await self.lifespan(receive, send)
            case "websocket", "/closed":
                await receive()
                await send({"type": "websocket.accept"})
                await send({"type": "websocket.close", "code": 1000})
            case "websocket", _:
                try:
                    await self.echo_socket(receive, send)
                finally:
                    self.ended.set()
            case _, "/flood" | "/last-flood" | "/kept-flood" | "/pieces" | "/events" as path:
                await self.stream(path, send)
            case _, path:
                await self.answer(scope, send, await self.body(path, scope, receive))

    async def body(self, path, scope, receive):
        match path:
            case "/held":
                self.started.set()
                await self.release.wait()
                return {"held": True}
            case "/late-reader":
                await self.release.wait()
            case "/early" | "/health":
                return {"early": True}
            case "/known":
                note_known(HTTPConnection(scope))
                return {"known": True}
            case "/watched":
                self.started.set()
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.ended.set()
        return {"length": await self.body_length(receive), "headers": [name.decode() for name, _ in scope["headers"]]}

    async def stream(self, path, send):
        headers = [(b"connection", b"close")] if path == "/last-flood" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        match path:
            case "/flood":
                await send({"type": "http.response.body", "body": bytes(32 * 1024 * 1024), "more_body": True})
            case "/pieces":
                for _ in range(512):
                    await send({"type": "http.response.body", "body": bytes(64 * 1024 + 1), "more_body": True})
            case "/events":
                await send({"type": "http.response.body", "body": b"first", "more_body": True})
                await self.release.wait()
        last = bytes(32 * 1024 * 1024) if path in {"/last-flood", "/kept-flood"} else b"last"
        await send({"type": "http.response.body", "body": last})
        self.ended.set()

    async def lifespan(self, receive, send):
        self.lifespans += 1
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def body_length(self, receive):
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.set()
                return length
            length += len(message["body"])
            self.coming.set()
            more = message["more_body"]
        return length

    async def answer(self, scope, send, body):
        data = json.dumps({"scheme": scope["scheme"], **body}).encode()
        headers = [(b"content-length", b"%d" % len(data)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def echo_socket(self, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        if message["code"] == 1012:
            await send({"type": "websocket.send", "text": "finished"})
            await send({"type": "websocket.close", "code": 1000})
        elif message["code"] == 1007:
            try:
                await send({"type": "websocket.send", "text": "too late"})
            except OSError as error:
                self.failure = type(error).__name__


class Running:
    """A server on free ports, in this process."""

    def __init__(self, app: App, room: Room, listeners: Listeners, task: asyncio.Task[None]):
        self.app = app
        self.room = room
        self.listeners = listeners
        self.task = task

    @contextlib.asynccontextmanager
    async def connect(self, **options) -> AsyncIterator["Client"]:
        """A connection, to the http port on 127.0.0.1 unless told otherwise."""
        target = {"host": "127.0.0.1", "port": self.listeners.http.port, **options}
        reader, writer = await asyncio.open_connection(**target)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def empty(self) -> None:
        """Wait until no connection takes a place."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.room):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """What an operator does."""
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(self.task, PATIENCE_S)


class Client:
    """A connection that sends what it is told, byte by byte if need be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Put bytes on the wire."""
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], dict]:
        """Status, headers and JSON body of one answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        first, *lines = head.decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), PATIENCE_S)
        return int(first.split()[1]), headers, json.loads(body)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE_S)

    async def upgrade(self, request: bytes = UPGRADE) -> None:
        """Become a websocket."""
        self.send(request)
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert head.startswith(b"HTTP/1.1 101")

    def send_frame(self, first_byte: int, payload: bytes = b"") -> None:
        """One short frame, masked with zeros."""
        self.send(bytes([first_byte, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    async def frame(self) -> tuple[int, bytes]:
        """First byte and payload of one short frame."""
        first, length = await asyncio.wait_for(self.reader.readexactly(2), PATIENCE_S)
        return first, await self.reader.readexactly(length)


def post(body: bytes = b"", length: int | None = None, path: str = "/", extra: bytes = b"") -> bytes:
    """A request that announces `length` bytes."""
    announced = len(body) if length is None else length
    return b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%s\r\n" % (path.encode(), announced, extra) + body


@contextlib.asynccontextmanager
async def serving(data_dir: Path, **options) -> AsyncIterator[Running]:
    """A running server with these settings, on a free port."""
    settings = Settings(data_dir=data_dir, **{"port": 0, **options})
    app, room, ready = App(), Room(settings.max_connections), asyncio.Event()
    listeners = sockets.bind(settings)
    task = asyncio.create_task(listen.serve(app, tuple(listeners), settings, room=room, on_ready=ready.set))
    await asyncio.wait_for(ready.wait(), PATIENCE_S)
    server = Running(app, room, listeners, task)
    try:
        yield server
    finally:
        app.release.set()
        if not task.done():
            await server.stop()

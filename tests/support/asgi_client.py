"""Calls an ASGI app in memory: requests, answers as they come, websockets. No socket, no thread."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from urllib.parse import unquote, urlsplit


@dataclasses.dataclass
class Answer:
    """A finished answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class Exchange:
    """One request in progress: what the app has sent, and the client's end of the line."""

    def __init__(self, app, scope, incoming):
        self._incoming = asyncio.Queue()
        for message in incoming:
            self._incoming.put_nowait(message)
        self.outgoing = asyncio.Queue()
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self.outgoing.put))

    def say(self, message):
        """Let the app receive a message."""
        self._incoming.put_nowait(message)

    async def hear(self):
        """The next message of the app; raises what the app raised, or AssertionError when it has ended."""
        heard = asyncio.ensure_future(self.outgoing.get())
        await asyncio.wait({heard, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if not heard.done() and self.outgoing.empty():
            heard.cancel()
            self.task.result()
            raise AssertionError("the app has ended")
        return await heard


def scope_of(kind, method, url, headers, host):
    """An ASGI scope for a path or an absolute URL."""
    parts = urlsplit(url)
    names = {"host": parts.netloc or host, **{name.lower(): value for name, value in (headers or {}).items()}}
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": parts.scheme or {"http": "http", "websocket": "ws"}[kind],
        "path": unquote(parts.path),
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in names.items() if value is not None],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
        "state": {},
    }


@contextlib.asynccontextmanager
async def exchange(app, method, url, *, headers: Mapping[str, str] | None = None, body=b"", host="localhost:8000"):
    """A request whose answer is taken message by message; it is broken off at the end."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    talk = Exchange(app, scope_of("http", method, url, headers, host), incoming)
    try:
        yield talk
    finally:
        talk.say({"type": "http.disconnect"})
        await asyncio.wait({talk.task}, timeout=5)
        talk.task.cancel()


async def call(app, method, url, **options) -> Answer:
    """A request and its whole answer."""
    async with exchange(app, method, url, **options) as talk:
        start = await talk.hear()
        body = b"".join([chunk async for chunk in chunks(talk)])
    return Answer(start["status"], {name.decode(): value.decode("latin-1") for name, value in start["headers"]}, body)


async def chunks(talk) -> AsyncIterator[bytes]:
    """The parts of the answer's body."""
    while True:
        message = await talk.hear()
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


class Refused(Exception):
    """The handshake of a websocket was answered with an HTTP status."""

    def __init__(self, answer):
        super().__init__(answer.status)
        self.answer = answer


class Closed(Exception):
    """The app has closed the websocket."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Socket:
    """An open websocket."""

    def __init__(self, talk):
        self._talk = talk

    def send(self, data):
        kind = "text" if isinstance(data, str) else "bytes"
        self._talk.say({"type": "websocket.receive", kind: data})

    def drain(self):
        """What the server says when it stops."""
        self._talk.say({"type": "websocket.disconnect", "code": 1012})

    async def recv(self):
        message = await asyncio.wait_for(self._talk.hear(), 5)
        if message["type"] == "websocket.close":
            raise Closed(message["code"])
        return message["text"] if message.get("text") is not None else message["bytes"]


@contextlib.asynccontextmanager
async def connect(app, url, *, headers=None, host="localhost:8000"):
    """A websocket, closed by the client at the end. Raises `Refused`."""
    talk = Exchange(app, scope_of("websocket", "GET", url, headers, host), [{"type": "websocket.connect"}])
    try:
        first = await talk.hear()
        if first["type"] == "websocket.http.response.start":
            body = b"".join([chunk async for chunk in chunks(talk)])
            names = {name.decode(): value.decode() for name, value in first["headers"]}
            raise Refused(Answer(first["status"], names, body))
        assert first["type"] == "websocket.accept"
        yield Socket(talk)
    finally:
        talk.say({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait({talk.task}, timeout=5)
        talk.task.cancel()


@contextlib.asynccontextmanager
async def lifespan(app):
    """The app started, and stopped at the end."""
    talk = Exchange(app, {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, [{"type": "lifespan.startup"}])
    started = await talk.hear()
    assert started["type"] == "lifespan.startup.complete", started
    try:
        yield
    finally:
        talk.say({"type": "lifespan.shutdown"})
        await talk.task

"""Bind the sockets and run uvicorn: several sockets, one app, one lifespan, one event loop.

Sockets are bound before anything else is done, so that a port in use is reported at once and the port that `--port 0`
picks is known. SIGTERM and SIGINT drain: no new connections, running requests finish within `drain_timeout`, then the
app's lifespan ends. A second SIGINT stops at once.
"""

import asyncio
import contextlib
import errno
import functools
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import uvicorn
import uvloop
from starlette.types import ASGIApp
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.access.limits import Quota
from server.settings import ListenSettings, SettingsError
from server.transport import tls
from server.transport.http_protocol import HttpProtocol
from server.transport.room import Room
from server.transport.websocket_protocol import WebSocketProtocol

TAKEOVER_PORT = 443
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Connections that wait to be accepted while the loop is busy; the kernel caps it (net.core.somaxconn).
_BACKLOG = 2048
# Seconds that a peer has to answer the TLS close alert.
_TLS_SHUTDOWN_S = 5.0
_STARTUP_FAILED = 3


@dataclass(frozen=True)
class Listener:
    """A bound socket, and the TLS context when it speaks https."""

    socket: socket.socket
    context: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """The port that the socket is bound to, also when port 0 was asked for."""
        return int(self.socket.getsockname()[1])


@dataclass(frozen=True)
class Listeners:
    """The sockets of a server: plain HTTP always, https and takeover (port 443) when the settings say so."""

    http: Listener
    https: Listener | None = None
    takeover: Listener | None = None

    def __iter__(self) -> Iterator[Listener]:
        return (listener for listener in (self.http, self.https, self.takeover) if listener is not None)


def bind(settings: ListenSettings) -> Listeners:
    """Bind every socket that the settings name; make certificates when one speaks https.

    Raises `SettingsError`, with what to do, for a port that is in use or not allowed.
    """
    http = Listener(_bind(settings, settings.port))
    if settings.tls_port is None and not settings.takeover:
        return Listeners(http)
    context = tls.server_context(tls.ensure(settings))
    return Listeners(
        http,
        https=None if settings.tls_port is None else Listener(_bind(settings, settings.tls_port), context),
        takeover=Listener(_bind(settings, TAKEOVER_PORT), context) if settings.takeover else None,
    )


def _bind(settings: ListenSettings, port: int) -> socket.socket:
    host = settings.host
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        hints = {
            errno.EADDRINUSE: "is in use: stop what holds it, or choose another",
            errno.EACCES: "needs a privilege: see README, “Port 443 without root”",
        }
        hint = hints.get(
            error.errno or 0, f"can't be opened ({error.strerror}): --host takes an address of this machine"
        )
        raise SettingsError(f"{host} port {port} {hint}") from error
    if settings.send_buffer_bytes:  # each accepted socket inherits it
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
    return bound


def run(
    app: ASGIApp, listeners: Listeners, settings: ListenSettings, room: Room, **callbacks: Callable[[], None]
) -> None:
    """Run `serve` in an event loop of its own; return when the server has stopped."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(app, tuple(listeners), settings, room=room, **callbacks))


async def serve(
    app: ASGIApp,
    listeners: Sequence[Listener],
    settings: ListenSettings,
    *,
    room: Room,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[], None] = lambda: None,
) -> None:
    """Serve `app` on all sockets until SIGTERM or SIGINT, then drain.

    `room` is where connections take their places. `on_ready` is called once they are accepted (the app's lifespan has
    started), `on_drain` when draining begins: after it the app should begin nothing new.
    """
    contexts = {listener.context for listener in listeners if listener.context is not None}
    renewals = [asyncio.create_task(tls.keep_fresh(context, settings)) for context in contexts]
    try:
        server = _Server(
            _config(app, settings, room), listeners, settings, room=room, on_ready=on_ready, on_drain=on_drain
        )
        await server.serve()
    finally:
        for renewal in renewals:
            renewal.cancel()


def _config(app: ASGIApp, settings: ListenSettings, room: Room) -> uvicorn.Config:
    coming = Quota(settings.body_budget_bytes, "bytes")
    return uvicorn.Config(
        app,
        http=HttpToolsProtocol,
        ws=functools.partial(WebSocketProtocol, settings, coming, room=room),  # type: ignore[arg-type]  # only called
        ws_max_size=settings.max_body_bytes,
        ws_ping_interval=settings.ping_interval,
        ws_ping_timeout=settings.ping_interval,
        ws_per_message_deflate=False,  # JPEGs don't shrink, and the windows cost 300 KB a socket
        lifespan="on",
        log_config=None,
        log_level="error",  # its INFO lines have query strings, and so tokens; its WARNINGs one line per bad request
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=settings.drain_timeout,
    )


class _Server(uvicorn.Server):
    """uvicorn's server with a TLS context per socket, and signals that only drain."""

    def __init__(
        self,
        config: uvicorn.Config,
        listeners: Sequence[Listener],
        settings: ListenSettings,
        *,
        room: Room,
        on_ready: Callable[[], None],
        on_drain: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._listeners = listeners
        self._settings = settings
        self._room = room
        self._on_ready = on_ready
        self._on_drain = on_drain

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(_STARTUP_FAILED)
        protocol = functools.partial(
            HttpProtocol, self._settings, self._room, self.config, self.server_state, self.lifespan.state
        )
        self.servers = [await self._listen(listener, protocol) for listener in self._listeners]
        self.started = True
        self._on_ready()

    async def _listen(self, listener: Listener, protocol: Callable[[], asyncio.Protocol]) -> asyncio.base_events.Server:
        loop = asyncio.get_running_loop()
        if listener.context is None:
            return await loop.create_server(protocol, sock=listener.socket, backlog=_BACKLOG)
        return await loop.create_server(
            protocol,
            sock=listener.socket,
            backlog=_BACKLOG,
            ssl=listener.context,
            ssl_handshake_timeout=self._settings.header_timeout,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S,
        )

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drain()
        await super().shutdown(sockets)

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again after the drain, which kills the process.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

"""Run uvicorn on the bound sockets: one app, one lifespan, one event loop.

SIGTERM and SIGINT stop it: connections are accepted for `lameduck` more seconds, then no more; running requests finish
within `drain_timeout` of the signal, then the app's lifespan ends. A second SIGINT is the caller's to handle.
"""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.access.limits import Quota
from server.logs import fault
from server.settings import ListenSettings
from server.transport import tls
from server.transport.http_protocol import HttpProtocol
from server.transport.room import Room
from server.transport.sockets import BACKLOG, Listener, Listeners
from server.transport.websocket_protocol import WebSocketProtocol

LOG = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds that a peer has to answer the TLS close alert.
_TLS_SHUTDOWN_S = 5.0


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
    on_close: Callable[[], None] = lambda: None,
    on_second_signal: Callable[[], None] = lambda: None,
) -> None:
    """Serve `app` on all sockets until SIGTERM or SIGINT, then drain.

    `room` is where connections take their places. `on_ready` is called once they are accepted (the app's lifespan has
    started), `on_drain` at the signal: from then on the app should say that it is leaving. `on_close` is called when no
    more connections are accepted: after it the app should begin nothing new. `on_second_signal` is called for a SIGINT
    while it drains. Raises what the app's lifespan raises.
    """
    asyncio.get_running_loop().set_exception_handler(_on_loop_error)
    contexts = {listener.context for listener in listeners if listener.context is not None}
    renewals = [asyncio.create_task(tls.keep_fresh(context, settings)) for context in contexts]
    lifespan = _Lifespan(app)
    try:
        server = _Server(
            lifespan,
            _config(lifespan, settings, room),
            listeners,
            settings,
            room=room,
            on_ready=on_ready,
            on_drain=on_drain,
            on_close=on_close,
            on_second_signal=on_second_signal,
        )
        await server.serve()
        lifespan.check()
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
    )


class _Lifespan:
    """The app, which keeps what its lifespan raises: uvicorn would log the traceback, and end with its own status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or run the lifespan."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_success(message: Message) -> None:
            if not message["type"].endswith(".failed"):
                await send(message)

        try:
            await self._app(scope, receive, send_success)
        except Exception as error:  # noqa: BLE001 - `check` raises it
            self._error = error

    def check(self) -> None:
        """Raise what the lifespan has raised."""
        if self._error is not None:
            raise self._error


class _Server(uvicorn.Server):
    """uvicorn's server with a TLS context per socket, and signals that only drain."""

    def __init__(
        self,
        app: _Lifespan,
        config: uvicorn.Config,
        listeners: Sequence[Listener],
        settings: ListenSettings,
        *,
        room: Room,
        on_ready: Callable[[], None],
        on_drain: Callable[[], None],
        on_close: Callable[[], None],
        on_second_signal: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._app = app
        self._listeners = listeners
        self._settings = settings
        self._room = room
        self._on_ready = on_ready
        self._on_drain = on_drain
        self._on_close = on_close
        self._stopped_at: float | None = None  # when the signal came, by the loop's clock
        self._on_second_signal = on_second_signal

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self._app.check()
        protocol = functools.partial(
            HttpProtocol, self._settings, self._room, self.config, self.server_state, self.lifespan.state
        )
        self.servers = [
            await self._listen(bound, listener.context, protocol)
            for listener in self._listeners
            for bound in listener.sockets
        ]
        self.started = True
        self._on_ready()

    async def _listen(
        self, bound: socket.socket, context: ssl.SSLContext | None, protocol: Callable[[], asyncio.Protocol]
    ) -> asyncio.base_events.Server:
        loop = asyncio.get_running_loop()
        if context is None:
            return await loop.create_server(protocol, sock=bound, backlog=BACKLOG)
        return await loop.create_server(
            protocol,
            sock=bound,
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=self._settings.header_timeout,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S,
        )

    @override
    async def on_tick(self, counter: int) -> bool:
        stopped = await super().on_tick(counter)
        return stopped and self._since_stop() >= self._settings.lameduck_s

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._note_stop()
        self._on_close()
        left = max(0.0, self._settings.drain_timeout - self._since_stop())
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # asyncio takes fractions
        await super().shutdown(sockets)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self._on_second_signal()
        super().handle_exit(sig, frame)
        if self.started:
            self._note_stop()

    def _note_stop(self) -> None:
        if self._stopped_at is None:
            self._stopped_at = asyncio.get_running_loop().time()
            self._room.leaving = True  # a request on a kept connection could meet its end
            self._on_drain()

    def _since_stop(self) -> float:
        """Return the seconds since the signal; 0 before it."""
        return 0.0 if self._stopped_at is None else asyncio.get_running_loop().time() - self._stopped_at

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


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a callback, a protocol or a forgotten task has raised; end the process after a `MemoryError`."""
    del loop
    if (error := context.get("exception")) is not None:
        fault(context["message"], error)  # without the error's own words, nor the task's, which repeat them
    else:
        LOG.error("%s", context["message"])

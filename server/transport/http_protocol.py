"""One HTTP connection: uvicorn's protocol class, extended by deadlines and limits.

Every stage of a connection has a limit. A client that exceeds one gets a JSON error in fal's shape. What it still sends
is read and dropped for a second, since closing while it sends would reset the connection, and the answer would be
lost. The same holds for an answer which is complete before its request is.

    stage               limit                                                       when exceeded
    handshake, headers  `header_timeout`, `max_header_bytes`                        408, 431
    body                `min_body_rate`, with `body_timeout` seconds of slack       408
    answer              `min_send_rate`, with `send_timeout` seconds of slack       aborted
    between requests    `keep_alive` (uvicorn's own)                                closed
    all connections     `max_connections`: one that is not being served makes way
                        for a new one, see `server.transport.room`                  closed
                        while all are being served                                  429, which every fal client retries
"""

import asyncio
from asyncio import TimerHandle
from typing import Any

from typing_extensions import override
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.access.auth import has_shown_key
from server.fal.errors import FalError, PlainError, RequestError, overloaded
from server.settings import ConnectionSettings
from server.transport.cycle_transport import CycleTransport
from server.transport.refusal import ambiguity, refusal
from server.transport.room import Rank, Room
from server.transport.send_deadline import SendDeadline
from server.web.clock import late

# Paths which are answered although all connections are in use. They cost nothing and tell no secrets.
_PROBES = frozenset((b"/health", b"/ready"))


class _Refused(Exception):
    """Ends the parsing of a request which has been answered already."""


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection. At any time at most one deadline runs: for headers, for a body, or for lingering."""

    def __init__(
        self,
        limits: ConnectionSettings,
        room: Room,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._limits = limits
        self._room = room
        self._deadline: TimerHandle | None = None
        self._in_message = self._in_headers = self._counted = False
        self._header_bytes = 0  # also of what is neither header nor body: trailers, the frames of chunks
        self._running: RequestResponseCycle | None = None  # `cycle` is the newest, which may wait behind it
        self._rank = Rank.STRANGER
        self._due = self._body_due = 0.0
        self._keeps_alive = self._ended = False

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._cycle_transport = CycleTransport(transport, self._end)
        self._sending = SendDeadline(transport, self._limits, self.loop)
        self._room.enter(self)
        self._room.idle(self, self._rank)
        self._expect_headers()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnect()
        super().connection_lost(exc)
        self._set_deadline(None)
        self._sending.stop()
        self._room.leave(self)

    @override
    def eof_received(self) -> None:
        self._close()

    @override
    def data_received(self, data: bytes) -> None:
        if self._ended or self.transport.is_closing():
            return
        if not self._in_message and self._deadline is None:
            self._expect_headers()
        was_in_message, self._counted = self._in_message, False
        super().data_received(data)
        if self._in_headers and self._deadline is None and not self._ended:  # they came behind another request
            self._expect_headers()
        if was_in_message and self._in_message:
            if not self._counted:  # by a callback: without this an endless line would fill the memory
                self._header_bytes += len(data)
            if self._header_bytes > self._limits.max_header_bytes:
                self._refuse_headers()

    # --- the parser's callbacks ---

    @override
    def on_message_begin(self) -> None:
        self._in_message = self._in_headers = True
        self._header_bytes = 0
        super().on_message_begin()

    @override
    def on_url(self, url: bytes) -> None:
        self._header_bytes += len(url)
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + len(b": \r\n")
        self._counted = True
        if self._in_headers:  # else a trailer: no route reads one, and none may pass for a header
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._header_bytes > self._limits.max_header_bytes:
            self._refuse_headers()
            raise _Refused
        if problem := ambiguity(self.headers, self.parser.get_http_version(), upgrades=self.parser.should_upgrade()):
            self.send_400_response(problem)
            raise _Refused
        admitted = self._serving or self._room.admits()
        if not (admitted or (self.url.partition(b"?")[0] in _PROBES and self._room.admits(probe=True))):
            self._refuse(overloaded("Too many open connections, try again"))
            raise _Refused
        self._room.busy(self)
        before, is_first = self.cycle, not self._serving
        super().on_headers_complete()
        if self.cycle is not before:
            self._running = self.cycle if is_first else self._running
            self.cycle.transport = self._cycle_transport  # type: ignore[assignment]  # it needs no more of one
            # An answer which begins before the body has ended says that it closes the connection.
            self._keeps_alive = self.cycle.keep_alive and admitted and not self._room.leaving
            self.cycle.keep_alive = False
        self._body_due = self.loop.time() + self._limits.body_timeout
        self._set_deadline(self._limits.body_timeout, self._check_body)

    @override
    def on_body(self, body: bytes) -> None:
        self._header_bytes, self._counted = 0, True
        latest = self.loop.time() + self._limits.body_timeout
        self._body_due = min(latest, self._body_due + len(body) / self._limits.min_body_rate)
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_message = False
        self._set_deadline(None)
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        if self._running is not None and has_shown_key(self._running.scope):
            self._rank = Rank.KNOWN
        if self._ended:
            self.flow.resume_reading()  # what comes is dropped
            return
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        self._note_idle()

    @override
    def handle_websocket_upgrade(self) -> None:
        if self._serving:
            self.send_400_response("A websocket can't begin while a request is being answered")
            return
        self._set_deadline(None)
        self._room.leave(self)  # the websocket takes a place of its own
        super().handle_websocket_upgrade()
        self._sending.stop()  # not before: its new limits may resume and pause this protocol once more

    # --- deadlines ---

    def _expect_headers(self) -> None:
        self._set_deadline(self._limits.header_timeout, self._check_headers)

    def _check_headers(self) -> None:
        if self._serving or late(self._due):  # an earlier request on this connection is being answered
            self._expect_headers()
        elif self._in_message:
            self._refuse(PlainError(408, "The request's headers did not arrive in time"))
        else:  # browsers open connections which they may not need
            self._close()

    def _check_body(self) -> None:
        now = self.loop.time()
        # The client is not to blame while this process is late, and while it waits to be told to send.
        if self.flow.read_paused or late(self._due) or self.cycle.waiting_for_100_continue:
            self._body_due = now + self._limits.body_timeout
        if now < self._body_due:
            self._set_deadline(self._body_due - now, self._check_body)
        else:
            self._refuse(PlainError(408, "The request's body did not arrive in time"))

    def _set_deadline(self, delay: float | None, check: Any = None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if delay is not None:
            self._due = self.loop.time() + delay
            self._deadline = self.loop.call_at(self._due, check)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending.start()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._sending.caught_up()
        self._note_idle()

    # --- the end ---

    @property
    def _serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_idle(self) -> None:
        """Make way from now on, unless a request is being served; last, until the client has all that was written."""
        if self._ended or not self._serving:
            rank = Rank.ENDING if self._ended else self._rank
            self._room.idle(self, Rank.READING if self._sending.watch_rest() else rank)

    def _disconnect(self) -> None:
        """Tell the app, for every request on this connection, that the client has left."""
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.waiting_for_100_continue = False
                cycle.message_event.set()

    @override
    def shutdown(self) -> None:
        if self._serving:
            self.cycle.keep_alive = self._keeps_alive = False
        else:
            self._close()

    @override
    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def evict(self) -> None:
        """Close at once: a TLS shutdown, or bytes which the client does not take, would keep the place."""
        self.transport.abort()

    def _end(self) -> None:
        """Close once the client can have read its answer: drop what it still sends, for a while."""
        if not self._in_message:
            self._close()
        elif not self._ended:
            self._ended = True
            self._note_idle()
            self.flow.resume_reading()
            self._set_deadline(self._room.linger_s, self._close)

    def _close(self) -> None:
        self._ended = True
        self._set_deadline(None)
        self._note_idle()
        self.transport.close()

    # --- refusals ---

    def _refuse_headers(self) -> None:
        self._refuse(PlainError(431, f"Request line and headers exceed {self._limits.max_header_bytes} bytes"))

    @override
    def send_400_response(self, msg: str) -> None:
        # uvicorn would answer in plain text.
        self._refuse(RequestError("bad_request", msg))

    def _refuse(self, error: FalError) -> None:
        """Answer in place of the app unless an answer has begun, and close. A running app sees a disconnect."""
        if self._ended or self.transport.is_closing():
            return
        self._in_message = True  # whatever the parser has seen: more may be coming
        if self._serving:
            self._disconnect()
            if self.pipeline or (self._running is not None and self._running.response_started):
                self._close()
                return
        headers, body = refusal(error)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode("latin-1") + b"\r\n" + body)
        self._end()

"""One HTTP connection: uvicorn's protocol class, extended by deadlines and limits.

Every stage of a connection has a limit. A client that exceeds one gets a JSON error in fal's shape, then
two seconds to read it:

    stage               limit                                                       when exceeded
    handshake, headers  `header_timeout`, `max_header_bytes`                        408, 431
    body                `min_body_rate`, with `body_timeout` seconds of slack       408
    answer              unread for `send_timeout`                                   aborted
    between requests    `keep_alive` (uvicorn's own)                                closed
    all connections     `max_connections`: the connection that has been idle, or
                        sending headers, for longest makes way for a new one        closed
                        while all are being served                                  429, which every fal client retries
"""

import asyncio
import json
import uuid
from asyncio import TimerHandle
from typing import Any

from typing_extensions import override
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from server.fal.errors import FalError, PlainError, RequestError, overloaded
from server.settings import ConnectionSettings
from server.web.clock import late

# Seconds that a refused client has to read its answer: closing while it still sends would reset the connection, and
# the answer would be lost.
_LINGER_S = 2.0


class _Refused(Exception):
    """Ends the parsing of a request which has been answered already."""


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection. At any time at most one deadline runs: for headers, for a body, or for lingering."""

    def __init__(
        self, limits: ConnectionSettings, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._limits = limits
        self._deadline: TimerHandle | None = None
        self._send_deadline: TimerHandle | None = None
        self._in_message = False
        self._in_headers = False
        self._header_bytes = 0
        self._idle_since = self.loop.time()
        self._due = 0.0
        self._body_due = 0.0
        self._refused = False

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_headers()
        if self._one_too_many:  # if none is idle, the next one closes it, or its request gets 429
            self._make_room()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._set_deadline(None)
        self.resume_writing()

    @override
    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if not self._in_message and self._deadline is None:
            self._expect_headers()
        was_in_headers = self._in_headers
        super().data_received(data)
        if was_in_headers and self._in_headers:
            # No callback has seen these bytes yet: without this count an endless header line would fill the memory.
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
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._header_bytes > self._limits.max_header_bytes:
            self._refuse_headers()
            raise _Refused
        if self._one_too_many and not self._make_room():
            self._refuse(overloaded("Too many open connections, try again"))
            raise _Refused
        super().on_headers_complete()
        self._body_due = self.loop.time() + self._limits.body_timeout
        self._set_deadline(self._limits.body_timeout, self._check_body)

    @override
    def on_body(self, body: bytes) -> None:
        latest = self.loop.time() + self._limits.body_timeout
        self._body_due = min(latest, self._body_due + len(body) / self._limits.min_body_rate)
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_message = False
        self._set_deadline(None)
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    @override
    def handle_websocket_upgrade(self) -> None:
        self._set_deadline(None)
        super().handle_websocket_upgrade()

    # --- deadlines ---

    def _expect_headers(self) -> None:
        self._set_deadline(self._limits.header_timeout, self._check_headers)

    def _check_headers(self) -> None:
        if self.flow.read_paused or late(self._due):  # an earlier request on this connection is being answered
            self._expect_headers()
        elif self._in_message:
            self._refuse(PlainError(408, "The request's headers did not arrive in time"))
        else:  # browsers open connections which they may not need
            self.transport.close()

    def _check_body(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused or late(self._due):  # this process is late, not the client
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
        if self._send_deadline is None:
            self._expect_reader()

    def _expect_reader(self) -> None:
        due = self.loop.time() + self._limits.send_timeout
        self._send_deadline = self.loop.call_at(due, self._check_reader, due)

    def _check_reader(self, due: float) -> None:
        if late(due):
            self._expect_reader()
        else:
            self.transport.abort()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    # --- refusals ---

    @property
    def _idle(self) -> bool:
        """Whether no request is being served on this connection: none has come, or its headers are incomplete."""
        served = self.cycle is None or self.cycle.response_complete
        return served and (self._in_headers or not self._in_message) and not self.transport.is_closing()

    @property
    def _one_too_many(self) -> bool:
        return len(self.connections) > self._limits.max_connections

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest. Return False if no other one is idle."""
        others = (other for other in self.connections if isinstance(other, HttpProtocol) and other is not self)
        idle = (other for other in others if other._idle)
        longest = min(idle, key=lambda other: other._idle_since, default=None)
        if longest is not None:
            longest.transport.close()
        return longest is not None

    def _refuse_headers(self) -> None:
        self._refuse(PlainError(431, f"Request line and headers exceed {self._limits.max_header_bytes} bytes"))

    @override
    def send_400_response(self, msg: str) -> None:
        # uvicorn would answer in plain text.
        self._refuse(RequestError("bad_request", msg))

    def _refuse(self, error: FalError) -> None:
        """Answer in place of the app unless an answer has begun, and close. A running app sees a disconnect."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self._set_deadline(None)
                self.transport.close()
                return
        headers, body = refusal(error)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode("latin-1") + b"\r\n" + body)
        self.flow.resume_reading()
        self._set_deadline(_LINGER_S, self.transport.close)


def refusal(error: FalError) -> tuple[dict[str, str], bytes]:
    """Return headers and body of an error which ends its connection."""
    body = json.dumps(error.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-fal-request-id": str(uuid.uuid4()),
        **error.headers,
    }
    return headers, body

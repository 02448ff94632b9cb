"""One websocket connection: uvicorn's protocol class, extended by a frame rate, memory limits and JSON errors.

    what                limit                                                             when exceeded
    frames              `max_frame_rate` for each socket; more wait in the network        slowed down
    unread answers      no input is read from a client that does not read                 slowed down
                        `min_send_rate`, with `send_timeout` seconds of slack             aborted
    one message         `max_body_bytes`; its fragments are kept in one buffer            close 1009
    all messages        `body_budget_bytes` on all sockets, until the app takes them      close 1013
    handshake           errors are JSON, as for any other request                         400 …
    malformed frames    they are not logged                                               close 1002, 1007
    the end             an unanswered Close has ten seconds, and makes way meanwhile      closed

A Close frame without a status is answered with 1000. An empty answer, which every ASGI server gives, is code 1005 in
browsers and Node, and fal's JavaScript clients report that to `onError` whenever an app calls `close()`.
"""

import asyncio
import http
from asyncio import TimerHandle
from collections.abc import Callable, Generator
from typing import Any

from typing_extensions import override
from uvicorn import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from server.access.limits import Quota, Reservation
from server.fal.errors import FalError, PlainError
from server.settings import ConnectionSettings
from server.transport.refusal import refusal
from server.transport.room import Rank, Room
from server.transport.send_deadline import SendDeadline

# Seconds until a socket that sends too fast is read again.
_PAUSE_S = 0.1

# Seconds' worth of frames that may come at once: how long a hundred sockets that begin together can delay the others.
_BURST_S = 0.25


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One websocket. When the server drains, the app receives a disconnect of code 1012 and may still send and close.

    A handler that receives 1012 finishes what it has accepted, sends the results and closes with 1000 itself.
    """

    def __init__(
        self,
        limits: ConnectionSettings,
        coming: Quota,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        room: Room,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._room = room
        self._reader = _PacedReader(limits.max_frame_rate, self.loop.time)
        self.conn = _PoliteServerProtocol(self._reader, max_size=config.ws_max_size, logger=self.logger)
        self._pause: TimerHandle | None = None
        self._message = bytearray()
        self._whole_bytes = 0  # of messages which the app has yet to take
        self._memory = Reservation(coming, "")

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._sending = SendDeadline(self.transport, self._limits, self.loop)
        self._room.enter(self)
        if self._sending.watch_rest():  # of an answer before the upgrade
            self.pause_writing()

    # --- what comes in ---

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_complete:
            # uvicorn never writes the answer to a handshake that could not be parsed (a line of more than 8 KB), and
            # for some (one with a body) the library has none.
            answer = b"".join(self.conn.data_to_send())
            self.transport.write(answer or self.conn.reject(400, str(self.conn.handshake_exc)).serialize())
            self.transport.close()
        if self._reader.held and self._pause is None:
            self._pause = self.loop.call_later(_PAUSE_S, self._go_on)
        self._account()
        self._steer()
        self._note_end()

    @override
    def handle_cont(self, event: Frame) -> None:
        # uvicorn keeps a list of fragments, which a million empty ones fill.
        if not self._message:
            self._message += self.frames[0]
        self._message += event.data
        if event.fin:
            self.frames, self._message = [bytes(self._message)], bytearray()
            self.send_receive_event_to_app()

    @override
    def send_receive_event_to_app(self) -> None:
        # uvicorn would log a traceback for text that is not UTF-8.
        if self.curr_msg_data_type == "text":
            try:
                str(self.frames[0], "utf-8")
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
                self.handle_parser_exception()
                return
        self._whole_bytes += len(self.frames[0])
        super().send_receive_event_to_app()

    @override
    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.queue.empty():
            self.read_paused, self._whole_bytes = False, 0
            self._account()
            self._steer()
        return message

    def _account(self) -> None:
        """Count the bytes kept for the app; close with 1013 if all sockets together keep more than the budget."""
        if self.conn.state is not State.OPEN:
            return
        kept = len(self._reader.buffer) + len(self._message) + self._whole_bytes
        try:
            self._memory.resize(kept)
        except FalError:
            self.conn.fail(CloseCode.TRY_AGAIN_LATER, "too many messages at once")
            self.handle_parser_exception()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._room.leave(self)
        self._sending.stop()
        self._memory.close()
        if self._pause is not None:
            self._pause.cancel()

    # --- when to read ---

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending.start()
        self._steer()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._sending.caught_up()
        self._steer()
        self._note_end()

    def _go_on(self) -> None:
        self._pause = None
        if not self.transport.is_closing():
            self.data_received(b"")  # what has been read already

    def _steer(self) -> None:
        """Pause reading while a message waits, while this client has sent too much or does not read; else resume."""
        if self.read_paused or self._pause is not None or not self.writable.is_set():
            self.transport.pause_reading()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    # --- what goes out ---

    @override
    async def send(self, message: Any) -> None:
        # Without the first check uvicorn would raise another error if a malformed frame has ended the socket; without
        # the last it would log an error for an answer which refuses the handshake.
        if self.handshake_complete and self.transport.is_closing():
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True
        self._note_end()

    # --- the end ---

    def _note_end(self) -> None:
        """Make way once the server has closed: the rest is only the peer's to do."""
        if self.close_sent or self.transport.is_closing():
            self._room.idle(self, Rank.READING if self._sending.watch_rest() else Rank.ENDING)

    def evict(self) -> None:
        """Close at once, whatever the peer has yet to read or to answer."""
        self.transport.abort()

    @override
    async def run_asgi(self) -> None:
        await super().run_asgi()
        self._note_end()

    @override
    def eof_received(self) -> None:
        self.transport.close()
        self._note_end()

    @override
    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._note_end()

    @override
    def shutdown(self) -> None:
        # uvicorn would close at once; here the app finishes what is in flight, until the drain's end cancels it.
        if not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.SERVICE_RESTART})


class _PacedReader(StreamReader):
    """Stream that gives the parser frames at a limited rate, with bursts of `_BURST_S` seconds' worth.

    `held`: whether a frame waits because of the rate.
    """

    def __init__(self, rate: int, now: Callable[[], float]) -> None:
        super().__init__()
        self._rate = rate
        self._now = now
        self._most = max(1.0, rate * _BURST_S)
        self._permits = self._most
        self._counted = now()
        self.held = False

    @override
    def at_eof(self) -> Generator[None, None, bool]:
        # The parser asks this before each frame; that is where it is made to wait.
        ended = yield from super().at_eof()
        while not (ended or self._permitted()):
            self.held = True
            yield
        self.held = False
        return ended

    def _permitted(self) -> bool:
        now = self._now()
        self._permits = min(self._most, self._permits + (now - self._counted) * self._rate)
        self._counted = now
        if self._permits < 1:
            return False
        self._permits -= 1
        return True


class _PoliteServerProtocol(ServerProtocol):
    """The library's protocol with JSON errors, and with status 1000 in place of an empty Close frame.

    A Close frame between the fragments of a message is answered with its own code (RFC 6455, 5.4: control frames may
    come there), for which the library has 1002.
    """

    def __init__(self, reader: StreamReader, **options: Any) -> None:
        super().__init__(**options)
        self.reader = reader
        self.parser = self.parse()  # the one which `super` has made reads from another reader
        next(self.parser)

    @override
    def reject(self, status: http.HTTPStatus | int, text: str) -> Response:
        status = http.HTTPStatus(status)
        headers, body = refusal(PlainError(status, text.strip() or status.phrase))
        return Response(status.value, status.phrase, Headers(headers), body)

    @override
    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None  # the rest of the message will not come
        super().recv_frame(frame)

    @override
    def send_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE and not frame.data:
            frame = Frame(Opcode.CLOSE, Close(CloseCode.NORMAL_CLOSURE, "").serialize())
        super().send_frame(frame)

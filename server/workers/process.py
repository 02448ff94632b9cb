"""One engine process, from its start to its end: frames sent, frames received, silence watched.

The process is a child with one end of a Unix stream socket pair. It exits when the server's end closes, however the
server ends. Every message from it counts as a sign of life. When it has been silent for longer than allowed, it is
killed with SIGKILL, because a stopped or hung process reacts to nothing else.
"""

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import msgspec
from typing_extensions import override

from pipelines.frames import OverlongFrame, frame_body, frame_end, parse_from_engine, write_frame
from pipelines.messages import (
    EXIT_CAPTURE_FAILED,
    EXIT_NO_ROOM,
    Beat,
    Configure,
    EngineConfig,
    FromEngine,
    Ready,
    ToEngine,
)
from server.logs import fault

logger = logging.getLogger(__name__)

# Bytes of the receive buffer at the start: an answer with one picture in one read. It grows to the largest message.
BUFFER = 512 * 1024

STDERR = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessTimes:
    """Limits in seconds on how long the parts of a process's life take.

    `loading_patience_s`: silence allowed until the engine is ready. It reports progress when there is some: reading
    4 GB from a slow disk, or a large download, takes minutes.
    `reap_s`: wait for a killed process to end. One that does not sits in a driver, perhaps for ever.
    `last_messages_s`: wait for the end of its messages after that, which come at once unless a child of the process
    keeps its end of the socket open.
    `late_s`: delay of a check of its silence beyond which it was the server that did not run.
    """

    loading_patience_s: float = 600.0
    reap_s: float = 10.0
    last_messages_s: float = 1.0
    late_s: float = 1.0


PROCESS_TIMES = ProcessTimes()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How engine processes are started and watched.

    `patience_s`: seconds that an engine may be silent, unless its last `Beat` asked for more.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    patience_s: float
    times: ProcessTimes = PROCESS_TIMES


class EngineProcess(asyncio.BufferedProtocol):
    """A running engine. `hear` is called from the event loop with each of its messages, in order."""

    def __init__(self, hear: Callable[[FromEngine], None], patience_s: float, times: ProcessTimes) -> None:
        self._hear = hear
        self._patience_s = patience_s
        self._times = times
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._process: Process
        self._exited: asyncio.Task[int]
        self._buffer = bytearray(BUFFER)
        self._filled = 0
        self._closed = self._loop.create_future()
        self._allowed_s = max(patience_s, times.loading_patience_s)
        self._heard_at = self._loop.time()
        self._stage = "loading"
        self._watch: asyncio.TimerHandle | None = None
        self.fault = ""  # why the server has killed it, in words that follow "because"

    @classmethod
    async def start(cls, launch: Launch, config: EngineConfig, hear: Callable[[FromEngine], None]) -> "EngineProcess":
        """Start the process and send it the configuration. Raises `OSError` if it can't be started.

        Whatever is raised, no process is left.
        """
        ours, theirs = socket.socketpair()
        engine = cls(hear, launch.patience_s, launch.times)
        try:
            with theirs:
                engine._process = await asyncio.create_subprocess_exec(
                    *launch.command,
                    "--fd",
                    str(theirs.fileno()),
                    stdin=DEVNULL,
                    stdout=STDERR,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C goes to the server alone, which drains first
                    env=launch.environment,
                )
        except BaseException:
            ours.close()
            raise
        engine._exited = asyncio.ensure_future(engine._process.wait())
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            try:
                transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: engine, sock=ours)
                undo.callback(transport.abort)
                engine.send(Configure(config))
                engine._look()
            except BaseException:
                engine.kill()
                await engine._exited
                raise
            undo.pop_all()
        return engine

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Send a message, unless the process is gone."""
        if not self._transport.is_closing():
            self._transport.write(write_frame(message))

    def kill(self) -> None:
        """Kill the process, unless it has ended.

        Not by asyncio's own `kill`: that asks first whether the process has ended, and so takes the exit status away
        from the loop, which then reports 255. An engine says by its status what is wrong.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def over(self) -> None:
        """Wait until it has exited or closed its socket: from then on it reads nothing."""
        await asyncio.wait({self._exited, self._closed}, return_when=asyncio.FIRST_COMPLETED)

    async def reap(self) -> int | None:
        """Kill the process and receive its remaining messages.

        Return its exit status, negative for a signal, or None if it does not end. A caller that is cancelled meanwhile
        still waits, because a process that is not reaped stays a zombie.
        """
        ending = asyncio.ensure_future(self._end())
        try:
            return await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _end(self) -> int | None:
        try:
            self.kill()
            await asyncio.wait({self._exited}, timeout=self._times.reap_s)
            await asyncio.wait({self._closed}, timeout=self._times.last_messages_s)
        except OSError:
            self._transport.abort()  # what can't be killed exits at the end of its stream
            await asyncio.wait({self._exited}, timeout=self._times.reap_s)
            raise
        finally:
            self._transport.abort()
            if self._watch is not None:
                self._watch.cancel()
        return self._exited.result() if self._exited.done() else None

    # --- what the transport calls ------------------------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set_result(None)

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    @override
    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._heard_at = self._loop.time()
        begin = 0
        try:
            with memoryview(self._buffer)[: self._filled] as view:
                while (end := frame_end(view, begin)) <= self._filled:
                    self._take(parse_from_engine(frame_body(view, begin, end)))
                    begin = end
        except (msgspec.MsgspecError, OverlongFrame) as error:
            logger.error("engine %d has sent an invalid message: %s; killed", self.pid, error)  # noqa: TRY400
            self._give_up("it sent an invalid message")
            return
        except Exception as error:  # noqa: BLE001 - the transport would close without a word
            fault(f"a message of engine {self.pid} could not be handled; it is killed", error)
            self._give_up(f"the server could not handle its message ({type(error).__name__}, see the log)")
            return
        self._keep_from(begin, end - begin)

    def _take(self, message: FromEngine) -> None:
        match message:
            case Beat(stage=stage, allow_s=allow_s):
                self._stage = stage
                self._allowed_s = max(self._patience_s, allow_s)
            case Ready():
                self._allowed_s = self._patience_s
        self._hear(message)

    def _keep_from(self, begin: int, needed: int) -> None:
        """Move the unfinished frame to the front of the buffer, which grows to `needed` bytes if it is smaller."""
        rest = self._buffer[begin : self._filled]
        if needed > len(self._buffer):
            self._buffer = bytearray(needed)
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)

    # --- the watch ---------------------------------------------------------------------------------------------------

    def _look(self, expected: float = math.inf) -> None:
        """Check again and again whether the process has been silent for too long, and kill it then.

        `expected`: when this check was due, in the loop's seconds.
        """
        now = self._loop.time()
        if now > expected + self._times.late_s:
            self._heard_at = now  # the server itself did not run, and has not read what came meanwhile
        if now > self._heard_at + self._allowed_s:
            silence = now - self._heard_at
            logger.error("engine %d has been silent for %.0f s at the stage %r; killed", self.pid, silence, self._stage)
            self._give_up(f"it was silent for {silence:.0f} s at the stage {self._stage!r}")
            return
        pause = min(1.0, self._patience_s / 4)
        self._watch = self._loop.call_later(pause, self._look, now + pause)

    def _give_up(self, why: str) -> None:
        """Kill the process and drop what it may still send."""
        self.fault = why
        self._transport.abort()
        self.kill()


def describe_exit(status: int | None) -> str:
    """Return how a process of this exit status ended, in words that follow "because"."""
    if status is None:
        return "it was killed, though it is still there"
    if status < 0:
        return f"it was ended by signal {-status} ({signal.strsignal(-status)})"
    if status == EXIT_NO_ROOM:
        return "its device has not enough memory left (the log says what helps)"
    if status == EXIT_CAPTURE_FAILED:
        return "its CUDA graphs could not be captured (the log says why)"
    return f"it exited with status {status}"

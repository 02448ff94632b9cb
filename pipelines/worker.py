"""Engine process: `python -P -m pipelines.worker --fd N`, where N is one end of a Unix stream socket pair.

    reader thread    passes the server's frames to the engine; ends the process at the end of the stream
    writer thread    sends the engine's messages to the server, several at once when they have piled up
    main thread      loads the model, then runs the engine's loop: it is the device thread

The server owns this process and decides when it ends: by `Drain`, or by closing its end of the socket, as a killed
server does too. So this process ignores the signals that a terminal or a service manager sends to the whole group.

Exit status: 0 drained, or the server is gone; 1 a bug in loading; 3 the model can't be loaded; 70 the device is lost;
75 the device has too little memory for the model now; 76 it can't capture CUDA graphs; 77 the weights that it lacked
are on disk now.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import socket
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pipelines import log_lines
from pipelines.engine.loop import Engine
from pipelines.errors import CaptureFailedError, CheckpointError, NoRoomError, NotOnDiskError
from pipelines.frames import parse_to_engine, read_frame, write_frame
from pipelines.images.decoder_process import processors
from pipelines.messages import (
    EXIT_CAPTURE_FAILED,
    EXIT_NO_ROOM,
    EXIT_WEIGHTS_FOUND,
    WEIGHTS_LOOK_S,
    Beat,
    Cancel,
    Configure,
    Drain,
    Loading,
    Ready,
    SetupFailed,
    Work,
)
from pipelines.parent import follow_parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.engine.backend import LoadedBackend
    from pipelines.messages import EngineConfig, FromEngine, ToEngine

    Load = Callable[[EngineConfig, Callable[[float, str], None]], LoadedBackend]
    Look = Callable[[EngineConfig], None]

logger = logging.getLogger(__name__)

EXIT_SETUP_FAILED = 3
EXIT_DEVICE_LOST = 70

# Number of messages that may wait for a server that does not read; then the loop waits too.
OUTBOX = 1024


class Link:
    """This process's end of the socket pair. A thread of its own writes the frames."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._outbox = queue.Queue[bytes | None](OUTBOX)
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self._writer.start()

    def send(self, message: FromEngine) -> None:
        """Queue a message for sending. From any thread; waits only if the server has stopped reading."""
        self._outbox.put(write_frame(message))

    def receive(self) -> ToEngine | None:
        """Return the server's next message; None once its end is closed."""
        body = read_frame(self._read)
        return parse_to_engine(body) if body else None

    def close(self) -> None:
        """Return when all queued messages have been written."""
        self._outbox.put(None)
        self._writer.join()
        self._socket.close()

    def _read(self, size: int) -> bytearray | None:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:  # MSG_WAITALL returns less after a SIGSTOP and a SIGCONT
            try:
                count = self._socket.recv_into(rest, flags=socket.MSG_WAITALL)
            except ConnectionError:
                return None
            if not count:
                return None
            rest = rest[count:]
        return data

    def _write(self) -> None:
        ended = False
        while not ended:
            frames = [self._outbox.get()]
            while not self._outbox.empty():
                frames.append(self._outbox.get())
            ended = frames[-1] is None
            try:
                self._socket.sendall(b"".join(one for one in frames if one is not None))
            except ConnectionError:
                os._exit(0)


def main(load: Load | None = None, look: Look | None = None, look_s: float = WEIGHTS_LOOK_S) -> None:
    """Run an engine. `load` makes the backend; `look` raises while weights are missing. Tests pass their own."""
    parser = argparse.ArgumentParser(prog="pipelines.worker")
    parser.add_argument("--fd", type=int, required=True)
    sock = socket.socket(fileno=parser.parse_args().fd)
    sock.set_inheritable(False)  # no process that this one starts may keep the socket open
    faulthandler.enable()
    follow_parent()
    log_lines.configure(process="engine")
    sys.exit(_serve(Link(sock), load or load_backend, look or look_for_weights, look_s))


def _serve(link: Link, load: Load, look: Look, look_s: float) -> int:
    first = link.receive()
    if not isinstance(first, Configure):
        return 0
    config = first.config
    log_lines.configure(config.log_level, config.log_format, process="engine", device=config.device)
    running = Future[Engine]()
    threading.Thread(target=_read, args=(link, running), name="reader", daemon=True).start()
    try:
        loaded = load(config, lambda fraction, what: link.send(Loading(fraction, what)))
        engine = Engine(
            config, loaded.model, loaded.codec, link.send, overlaps=loaded.overlaps, decoders=loaded.decoders
        )
        if loaded.warm_up_side:
            link.send(Loading(1.0, "warming up"))
            engine.warm_up(loaded.warm_up_side)
    except NotOnDiskError as error:
        _await_weights(config, link, SetupFailed(error.reason, error.hint, waits=True), look, look_s)
        link.close()
        return EXIT_WEIGHTS_FOUND
    except CheckpointError as error:
        link.send(SetupFailed(error.reason, error.hint))
        link.close()
        return EXIT_SETUP_FAILED
    except (NoRoomError, CaptureFailedError) as error:
        logger.error("%s %s", error.reason, error.hint)  # noqa: TRY400 (the traceback says nothing)
        link.close()
        return EXIT_NO_ROOM if isinstance(error, NoRoomError) else EXIT_CAPTURE_FAILED
    running.set_result(engine)
    link.send(
        Ready(
            model=loaded.name,
            device=loaded.device,
            dtype=loaded.dtype,
            torch=loaded.torch,
            capacity=engine.capacity,
            decoders=engine.decoders,
            processors=processors(),
            notice=loaded.notice,
        )
    )
    try:
        engine.run()
    except Exception as error:
        logger.exception("the device is lost; this engine ends")
        # A broken device can hang an orderly exit.
        os._exit(EXIT_CAPTURE_FAILED if isinstance(error, CaptureFailedError) else EXIT_DEVICE_LOST)
    link.close()
    return 0


def _await_weights(config: EngineConfig, link: Link, missing: SetupFailed, look: Look, look_s: float) -> None:
    """Tell the server what is missing, and again when that changes, until nothing is.

    Files which can't be read count as missing too: they may be on their way.
    """
    link.send(missing)
    while True:
        time.sleep(look_s)
        link.send(Beat("waiting for weights", 0.0, ()))
        try:
            look(config)
        except CheckpointError as error:
            said, missing = missing, SetupFailed(error.reason, error.hint, waits=True)
            if missing != said:
                link.send(missing)
        else:
            return


def _read(link: Link, loaded: Future[Engine]) -> None:
    """Pass the server's messages to the engine; end the process when there are no more, for it then has no owner."""
    while (message := link.receive()) is not None:
        match message:
            case Work():
                loaded.result().submit(message)
            case Cancel(id=request_id):
                loaded.result().cancel(request_id)
            case Drain():
                loaded.result().drain()
    os._exit(0)  # not sys.exit: the main thread may be stuck in the device


def load_backend(config: EngineConfig, progress: Callable[[float, str], None]) -> LoadedBackend:
    """Return the backend that `config` names: a model on its device, or none. Raises `SetupError`."""
    # Imported here because torch takes seconds, and `instant` does without it.
    if config.model.partition(":")[0] in {"instant", "instant+jpeg"}:
        from pipelines.engine import instant  # noqa: PLC0415

        return instant.load(config)
    from pipelines.device import loader  # noqa: PLC0415

    return loader.load(config, progress)


def look_for_weights(config: EngineConfig) -> None:
    """Raise `CheckpointError` unless all that `config` needs is on disk, whole, in whichever precision is loaded."""
    from pipelines.weights import checkpoint  # noqa: PLC0415 (torch)

    for half in (True, False):
        checkpoint.on_disk(config, half=half)


if __name__ == "__main__":
    main()

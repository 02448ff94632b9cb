"""Decodes large pictures in processes of their own, each of which can be bounded and ended without harm to others.

A process is started when it is first needed, decodes one picture at a time, and is kept for the next
(`pipelines.images.decoder`). When one is killed from outside in the middle, its picture is decoded once more; one that
was killed before is replaced. A picture that takes too long fails alone. A process whose picture is no longer wanted is
killed: others wait for it.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import Pipe

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.images.codec import ALONE, MEMORY_BUDGET, ImageFault, LargePicture
from pipelines.images.decoder import Answer, Fault, Task, TooMuchMemory
from pipelines.messages import EngineConfig

# Large pages (glibc; others ignore it): fifty megapixels take some thousand page faults instead of seventy thousand,
# which cost other processes time too.
LARGE_PAGES = ("env", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1")
COMMAND = (*LARGE_PAGES, sys.executable, "-P", "-m", "pipelines.images.decoder")

STDERR = 2

_ANSWERS = msgspec.msgpack.Decoder(Answer)


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoder_count(processors: int) -> int:
    """Return the number of decoder processes on a machine of that many processors.

    Half of the processors are left to the devices and the server. At most four, because each takes memory too.
    """
    return max(1, min(4, processors // 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderLimits:
    """Bounds on decoder processes.

    `count`: processes.
    `cpu_s`: seconds of computing for one picture; fifty megapixels of any kind take one to five.
    `wall_s`: seconds in all, for one that hangs; a process of low priority may get a tenth of a processor.
    `tries`: processes that may end in the middle of one picture.
    """

    count: int = decoder_count(processors())
    cpu_s: float = 20.0
    wall_s: float = 120.0
    tries: int = 2


DECODER_LIMITS = DecoderLimits()


class Unwanted(Exception):
    """The picture is no longer wanted."""


class DecoderError(Exception):
    """The picture was not decoded, though nothing is known to be wrong with it."""


class Decoders:
    """Decoder processes for an engine of this configuration. Called from up to `limits.count` threads at once.

    The threads must live as long as the processes: Linux ends a process with the thread that started it.
    """

    def __init__(
        self, config: EngineConfig, *, command: Sequence[str] = COMMAND, limits: DecoderLimits = DECODER_LIMITS
    ) -> None:
        self.limits = limits
        self._task = msgspec.msgpack.encode(Task(limits=config, cpu_s=limits.cpu_s))
        self._command = command
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: dict[str, _Process] = {}

    def decode(self, name: str, data: bytes, wanted: Callable[[], bool], *, alone: bool = True) -> NDArray[np.uint8]:
        """Return a picture's pixels, as `codec.decode` does. `name`: what `stop` knows it by.

        Raises `LargePicture` for one that takes much memory and is not decoded `alone`, `ImageFault`, `DecoderError`,
        `OSError` if no process can be started, and `Unwanted` if `wanted` says so before or after. To have it say so in
        between, call `stop` too.
        """
        for _ in range(self.limits.tries):
            process, answer = self._take(name, wanted), None
            try:
                answer = process.decode(data, MEMORY_BUDGET if alone else ALONE, self.limits.wall_s)
            finally:
                self._give_back(name, process, answered=answer is not None)
            if not wanted():
                raise Unwanted
            if answer is not None:
                break
            if process.status == -signal.SIGXCPU:
                message = f"The image could not be read: it takes more than {self.limits.cpu_s:g} s of computing."
                raise ImageFault("image_load_error", message)
            if process.late:
                raise DecoderError(f"not decoded within {self.limits.wall_s:g} s")
        else:
            raise DecoderError(f"{self.limits.tries} decoder processes ended in the middle of one picture")
        if isinstance(answer, TooMuchMemory):
            raise LargePicture(alone=True)
        if isinstance(answer, Fault):
            raise ImageFault(answer.kind, answer.message, answer.ctx)
        pixels = np.frombuffer(bytearray(answer.data), np.uint8)
        return pixels.reshape(answer.height, answer.width, 3)

    def _take(self, name: str, wanted: Callable[[], bool]) -> "_Process":
        """Return a process for a picture. Raises `Unwanted`."""
        with self._lock:
            if not wanted():
                raise Unwanted
            while self._idle and self._idle[-1].ended:
                self._idle.pop().end()
            process = self._idle.pop() if self._idle else None
        if process is None:
            process = _Process(self._command, self._task)  # without the lock, because a start takes long
        with self._lock:
            self._busy[name] = process
            if not wanted():
                process.kill()  # `stop` came too early for it
        return process

    def _give_back(self, name: str, process: "_Process", *, answered: bool) -> None:
        """Keep a process for the next picture if it has answered and was not killed meanwhile; else end it."""
        with self._lock:
            del self._busy[name]
            if answered and not process.killed:
                self._idle.append(process)
                return
        process.end()

    def stop(self, name: str) -> None:
        """Kill the process that decodes this picture, if one does. The picture must not be wanted any more."""
        with self._lock:
            if name in self._busy:
                self._busy[name].kill()

    def close(self) -> None:
        """End all processes. None may be decoding."""
        with self._lock:
            for process in self._idle:
                process.end()
            self._idle.clear()


class _Process:
    """One decoder process. `status`: its exit status, once it has ended. `late`: it was killed for taking too long."""

    def __init__(self, command: Sequence[str], task: bytes) -> None:
        self.killed = False
        self.late = False
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
                pass_fds=(theirs.fileno(),),
            )
        self._task: bytes | None = task

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def decode(self, data: bytes, memory: int, wall_s: float) -> Answer | None:
        """Return what the process says of a picture, which may take `memory` bytes.

        None if the process has ended, or must, without a whole answer.
        """
        timer = threading.Timer(wall_s, self._end_late)
        timer.start()
        try:
            if self._task is not None:
                self._connection.send_bytes(self._task)
                self._task = None
            self._connection.send_bytes(str(memory).encode())
            self._connection.send_bytes(data)
            answer: Answer = _ANSWERS.decode(self._connection.recv_bytes())
        except (EOFError, OSError, msgspec.MsgspecError):  # OSError: an end in the middle of a message too
            return None
        finally:
            timer.cancel()
            timer.join()  # from here on it kills nothing
        return answer

    def kill(self) -> None:
        self.killed = True
        self._process.kill()

    def end(self) -> None:
        """Kill the process, wait for its end, and forget it."""
        self.kill()
        self._process.wait()
        self._connection.close()

    def _end_late(self) -> None:
        self.late = True
        self.kill()

"""Decoder process: `python -P -m pipelines.images.decoder --fd N`, where N is one end of a socket pair.

It decodes one large picture after the other for `pipelines.images.decoder_process`, at a low CPU priority. The first
message to it is a `Task`. Then there are two for each picture: the bytes of memory that it may take, in decimal, and
the encoded picture. Each answer is a `Pixels`, a `Fault` or a `TooMuchMemory`. The process ends at the end of the
stream. Limits hold it from inside: the system ends it when a picture takes too much computing, and on Linux memory that
was not foreseen from a header is not to be had. So nothing that a picture does reaches the engine.
"""

import argparse
import contextlib
import logging
import math
import os
import resource
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import msgspec

from pipelines import log_lines
from pipelines.images import codec
from pipelines.messages import EngineConfig, FailureKind
from pipelines.parent import follow_parent

logger = logging.getLogger("pipelines.images.decoder")

# Added to the process's niceness: the device, encoders and the server go first when they want the processor.
NICENESS = 10

# For /proc/self/oom_score_adj, at most 1000: when the machine's memory runs out, the kernel ends a decoder first.
OOM_SCORE = 1000


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What all pictures have in common. `cpu_s`: seconds of computing that one may take."""

    limits: EngineConfig
    cpu_s: float


class Pixels(msgspec.Struct, frozen=True, tag=True):
    """A decoded picture: RGB, eight bits each."""

    height: int
    width: int
    data: bytes


class Fault(msgspec.Struct, frozen=True, tag=True):
    """The picture can't be used: a `pipelines.images.codec.ImageFault`."""

    kind: FailureKind
    message: str
    ctx: dict[str, int | float | str | list[str]]


class TooMuchMemory(msgspec.Struct, frozen=True, tag=True):
    """The picture takes more memory than it may now."""


Answer: TypeAlias = Pixels | Fault | TooMuchMemory


def main() -> None:
    """Decode until the other end closes."""
    parser = argparse.ArgumentParser(prog="pipelines.images.decoder")
    parser.add_argument("--fd", type=int, required=True)
    connection = Connection(parser.parse_args().fd)
    follow_parent()
    os.nice(NICENESS)
    _offer_to_oom_killer()
    _lower(resource.RLIMIT_CORE, 0)  # a dump of memory would have a picture in it
    try:
        task = msgspec.msgpack.decode(connection.recv_bytes(), type=Task)
        log_lines.configure(task.limits.log_level, task.limits.log_format, process="decoder", device=task.limits.device)
        _bound_memory(task.limits)
        while True:
            memory, data = int(connection.recv_bytes()), connection.recv_bytes()
            _bound_time(task.cpu_s)
            connection.send_bytes(msgspec.msgpack.encode(_answer(data, task.limits, memory)))
    except (EOFError, ConnectionError):
        return  # the engine has ended


def _answer(data: bytes, limits: EngineConfig, memory: int) -> Answer:
    try:
        pixels = codec.decode(data, limits, memory)
    except codec.LargePicture:
        return TooMuchMemory()
    except codec.ImageFault as fault:
        return Fault(fault.kind, fault.message, fault.ctx)
    except MemoryError:
        return Fault("image_load_error", "The image could not be read: it takes too much memory.", {})
    except Exception as error:  # noqa: BLE001 – any fault: it is of one picture, and the process is as good as before
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.warning("a picture was not decoded: %s\n%s", type(error).__name__, where)  # not what it says: content
        return Fault("image_load_error", "The image could not be read: its data is damaged.", {})
    height, width, _ = pixels.shape
    return Pixels(height, width, pixels.tobytes())


def _offer_to_oom_killer() -> None:
    """Let the kernel end this process rather than an engine or the server when memory runs out. Linux only."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and pictures are decoded without
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def _bound_memory(limits: EngineConfig) -> None:
    """Bound the address space: what is there now, a picture's budget, and copies of its file. Linux only."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + codec.MEMORY_BUDGET + 4 * limits.max_image_bytes
        _lower(resource.RLIMIT_AS, most)


def _bound_time(cpu_s: float) -> None:
    """Have the system end this process when it has computed for that many seconds more."""
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time() + cpu_s))


def _lower(limit: int, most: int) -> None:
    """Set a soft limit, no higher than the hard one."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()

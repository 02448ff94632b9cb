"""What a person sees of a server's start and end: how far the model is, each change of state, how stopping goes.

loading the unet (45%), 12 s          at a terminal one line that moves, elsewhere a log line every ten seconds
READY after 14 s of STARTING          a log line, once for each change
stopping: 2 running, up to 15 s; Ctrl-C again stops now
"""

import asyncio
import logging
import shutil
import sys

from server.access.limits import Limits
from server.jobs.queue import Queue
from server.logs import WIPE, moves
from server.workers.pool import Pool, State

LOG = logging.getLogger(__name__)

_LOOK_S = 0.2
_LINE_S = 10.0


async def watch(pool: Pool, form: str, look_s: float = _LOOK_S, line_s: float = _LINE_S) -> None:
    """Say for ever what the engines do, in the form that `log_format` asks for.

    `look_s`: seconds between two looks. `line_s`: seconds between two lines where no line can move.
    """
    now = asyncio.get_running_loop().time
    state, since, said = State.STARTING, now(), now()
    moving = moves(form)
    while True:
        new = State.READY if pool.state is State.BUSY else pool.state
        if new is not state:
            LOG.info("%s after %.0f s of %s", new, now() - since, state)
            state, since, said = new, now(), now()
        elif state is State.STARTING and moving:
            _move(_line(pool, now() - since))
        elif state is State.STARTING and now() >= said + line_s:
            LOG.info("%s", _line(pool, now() - since))
            said = now()
        await asyncio.sleep(look_s)


def _line(pool: Pool, seconds: float) -> str:
    return f"{pool.detail.rstrip('.')}, {seconds:.0f} s"


def _move(line: str) -> None:
    """Write a line in the place of the one before, cut to the terminal's width: a longer one could not be wiped."""
    sys.stderr.write(WIPE + line[: shutil.get_terminal_size().columns - 1])
    sys.stderr.flush()


def say_stopping(queue: Queue, limits: Limits, drain_timeout: int) -> None:
    """Say what is waited for, and how to do without."""
    running = queue.in_flight + limits.calls_running
    if running:
        LOG.info("stopping: %d running, up to %d s; Ctrl-C again stops now", running, drain_timeout)
    else:
        LOG.info("stopping")

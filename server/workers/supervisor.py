"""A device and the engine on it: started, replaced when it ends, given up when that does not help.

An engine that ends is replaced at once; ends in a row, with no request finished in between, are followed by growing
pauses, and after `FAILURES` of them the device is DEFUNCT: reported, given no work, and tried again every few minutes.
An engine whose model can't be had leaves it SETUP_FAILED, and is not tried again: that takes the operator.
"""

import asyncio
import dataclasses
import enum
import logging
import math
import signal
from collections.abc import Mapping, Sequence
from typing import Protocol

from pipelines.messages import (
    EXIT_NO_ROOM,
    Beat,
    Drain,
    EngineConfig,
    FromEngine,
    Loading,
    Ready,
    SetupFailed,
    ToEngine,
)
from server.workers.process import EngineProcess

logger = logging.getLogger(__name__)

# Poison requests end at most three engines each, so it takes four of them on end to look like a broken device.
FAILURES = 10
# An engine that was ready for so long before it ended does not add to a row.
STABLE_S = 60.0
# Before the second replacement in a row, doubled with each, up to the longest.
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
# A device that is out: a driver that was reset, or other programs that have left its memory, bring it back.
OUT_PAUSE_S = 300.0


class State(enum.StrEnum):
    """Of an engine, and of the pool, which has the best of its engines'."""

    READY = "READY"
    BUSY = "BUSY"
    STARTING = "STARTING"
    DEFUNCT = "DEFUNCT"
    SETUP_FAILED = "SETUP_FAILED"


class Owner(Protocol):
    """Who is told what happens to a slot."""

    def heard(self, supervisor: "Supervisor", message: FromEngine) -> None:
        """The engine said something of a request."""

    def changed(self) -> None:
        """A slot's state is another one."""

    def lost(self, supervisor: "Supervisor") -> None:
        """The engine has ended; what it had in hand is as good as never sent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How engine processes are started. `patience_s`: for how long one may be silent without having said so."""

    command: Sequence[str]
    environment: Mapping[str, str]
    patience_s: float


class Supervisor:
    """One device, and what its engine said of itself. `detail` is for people: how far loading is, or what to do."""

    def __init__(self, config: EngineConfig, launch: Launch, owner: Owner) -> None:
        self.device = config.device
        self.state = State.STARTING
        self.detail = "Starting the engine."
        self.model = ""
        self.notice = ""
        self.capacity = 0
        self.restarts = 0
        self._config = config
        self._launch = launch
        self._owner = owner
        self._engine: EngineProcess | None = None
        self._failures = 0
        self._ready_at = math.inf
        self._draining = False

    @property
    def pid(self) -> int | None:
        """The engine's process id, if there is one."""
        return None if self._engine is None else self._engine.pid

    def send(self, message: ToEngine) -> None:
        """Tell the engine, if there is one."""
        if self._engine is not None:
            self._engine.send(message)

    def drain(self) -> None:
        """Let the engine finish and end; no other follows it."""
        self._draining = True
        self.send(Drain())

    def finished_one(self) -> None:
        """A request was finished: the device works."""
        self._failures = 0

    async def keep_running(self) -> None:
        """Have an engine run on the device until drained, or until its model turns out not to be had."""
        while True:
            end = await self._live()
            if self._draining:
                return
            self._note_end(end)
            self._owner.lost(self)
            if self.state is State.SETUP_FAILED:
                return
            await asyncio.sleep(self._pause_s())
            self.restarts += 1

    async def _live(self) -> str:
        """One engine, from start to end. What its end was."""
        launch = self._launch
        self._ready_at = math.inf
        try:
            engine = self._engine = await EngineProcess.start(
                launch.command, launch.environment, self._config, self._hear, launch.patience_s
            )
        except OSError as error:
            return f"it could not be started ({error.strerror})"
        try:
            await engine.over()
            if self.state is State.READY:  # reaping takes its time, in which it must be sent nothing
                self._become(State.STARTING, "The engine has ended.")
        finally:
            self._engine = None
            status = await engine.reap()
        return _describe(status)

    def _hear(self, message: FromEngine) -> None:
        match message:
            case Loading(fraction, what) if self.state is State.STARTING:
                self.detail = f"{what} ({fraction:.0%})"
            case Beat() | Loading():
                pass
            case Ready() if self._engine is None:
                pass  # the last words of one that is being reaped
            case Ready(model=model, device=device, capacity=capacity, notice=notice):
                self.model, self.device, self.capacity, self.notice = model, device, capacity, notice
                self._ready_at = asyncio.get_running_loop().time()
                logger.info("%s is ready on %s", model, device)
                if notice:
                    logger.warning("%s", notice)
                self._become(State.READY, "")
            case SetupFailed(reason, hint):
                detail = f"{reason} {hint} Then start the server again."
                logger.error("the model can't be had: %s", detail)
                self._become(State.SETUP_FAILED, detail)
            case _:
                self._owner.heard(self, message)

    def _note_end(self, end: str) -> None:
        if self.state is State.SETUP_FAILED:
            return
        logger.error("the engine on %s has ended: %s", self.device, end)
        stable = asyncio.get_running_loop().time() > self._ready_at + STABLE_S
        self._failures = 1 if stable else self._failures + 1
        if self._failures >= FAILURES:
            detail = (
                f"The engine on {self.device} has ended {self._failures} times in a row, the last time because {end}. "
                f"See the log and `fourstep doctor`; it is tried again every {OUT_PAUSE_S / 60:.0f} minutes."
            )
            self._become(State.DEFUNCT, detail)
        else:
            self._become(State.STARTING, f"The engine has ended because {end}; it is started again.")

    def _become(self, state: State, detail: str) -> None:
        self.state, self.detail = state, detail
        self._owner.changed()

    def _pause_s(self) -> float:
        if self.state is State.DEFUNCT:
            return OUT_PAUSE_S
        in_a_row = self._failures - 1
        return min(LONGEST_PAUSE_S, math.ldexp(FIRST_PAUSE_S, in_a_row - 1)) if in_a_row else 0.0


def _describe(status: int | None) -> str:
    """How a process ended, in words that follow "because"."""
    if status is None:
        return "it was killed, though it is still there"
    if status < 0:
        return f"it was ended by signal {-status} ({signal.strsignal(-status)})"
    if status == EXIT_NO_ROOM:
        return "its device has not enough memory left (the log says what helps)"
    return f"it exited with status {status}"

"""Supervises the engine of one device: starts it, replaces it when it ends, gives up when that does not help.

An engine that ends is replaced at once. Ends in a row, with no request finished in between, are followed by growing
pauses; after a number of them (`RestartPolicy`) the device is DEFUNCT: reported, given no work, and tried again every
few minutes. An engine whose model can't be loaded leaves the device SETUP_FAILED; it is not replaced, because only the
operator can help, unless files were missing: it then waits for them, and exits when they are there. After an engine
that could not capture CUDA graphs the next ones do without them. An engine without work can be UNLOADED: it exits, and
the next one starts when it is woken.
"""

import asyncio
import dataclasses
import enum
import logging
import math
from typing import Protocol

import msgspec

from pipelines.messages import (
    EXIT_CAPTURE_FAILED,
    EXIT_WEIGHTS_FOUND,
    WEIGHTS_LOOK_S,
    Beat,
    Drain,
    EngineConfig,
    FromEngine,
    Loading,
    Ready,
    SetupFailed,
    ToEngine,
)
from server.logs import fault
from server.workers.process import EngineProcess, Launch, describe_exit

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When an engine that ended is replaced, and when its device is DEFUNCT.

    `failures`: ends in a row that make the device DEFUNCT. A poison request ends at most three engines, so it takes
    four of them in succession to look like a broken device.
    `stable_s`: seconds of being ready after which an engine's end starts a new row.
    `first_pause_s`: the pause before the second replacement in a row; doubled with each, up to `longest_pause_s`.
    `defunct_pause_s`: the pause of a DEFUNCT device, which a driver's reset or memory freed by others may bring back.
    """

    failures: int = 10
    stable_s: float = 60.0
    first_pause_s: float = 0.25
    longest_pause_s: float = 10.0
    defunct_pause_s: float = 300.0

    def pause_s(self, ends: int) -> float:
        """Return the seconds to wait before a replacement, after this many ends in a row."""
        if ends >= self.failures:
            return self.defunct_pause_s
        return min(self.longest_pause_s, math.ldexp(self.first_pause_s, ends - 2)) if ends > 1 else 0.0


RESTART_POLICY = RestartPolicy()


_WITHOUT_GRAPHS = (
    "CUDA graphs can't be captured here: pictures are made without them, slower. The log says why; --graphs off leaves"
    " them out from the start."
)


_LOOKS = f"The server looks for it every {WEIGHTS_LOOK_S:.0f} s and goes on by itself."


class State(enum.StrEnum):
    """State of an engine, and of the pool, which has the best of its engines' states."""

    READY = "READY"
    BUSY = "BUSY"
    STARTING = "STARTING"
    UNLOADED = "UNLOADED"
    DEFUNCT = "DEFUNCT"
    SETUP_FAILED = "SETUP_FAILED"


class Owner(Protocol):
    """Receiver of a supervisor's events."""

    def on_message(self, supervisor: "Supervisor", message: FromEngine) -> None:
        """Handle an engine's message about a request."""

    def on_state_change(self) -> None:
        """Handle a change of a supervisor's state."""

    def on_engine_end(self, supervisor: "Supervisor") -> None:
        """Handle the end of an engine: the requests that were assigned to it are not finished."""


class Supervisor:
    """One device and its engine. `detail`, human-readable: the progress of loading, or what the operator has to do.

    `process`: the class of its engines.
    """

    def __init__(
        self,
        config: EngineConfig,
        launch: Launch,
        owner: Owner,
        restarts: RestartPolicy = RESTART_POLICY,
        process: type[EngineProcess] = EngineProcess,
    ) -> None:
        self.device = config.device
        self.state = State.STARTING
        self.detail = "Starting the engine."
        self.model = ""
        self.dtype = ""
        self.torch = ""
        self.notice = ""
        self.capacity = 0
        self.decoders = 0
        self.processors = 0
        self.restarts = 0
        self.graphs_failed = False
        self._config = config
        self._launch = launch
        self._restart_policy = restarts
        self._owner = owner
        self._process = process
        self._engine: EngineProcess | None = None
        self._failures = 0
        self._ready_at = math.inf
        self._draining = False
        self._unloading = False
        self._waits = False  # the engine looks for the weights that it lacks
        self._wanted = asyncio.Event()  # after an unload: the device is to have an engine again

    @property
    def failing(self) -> bool:
        """Return whether the latest engines have ended without a finished request."""
        return self._failures > 0

    @property
    def pid(self) -> int | None:
        """Return the engine's process id, None if there is no engine."""
        return None if self._engine is None else self._engine.pid

    def send(self, message: ToEngine) -> None:
        """Send a message to the engine, if there is one."""
        if self._engine is not None:
            self._engine.send(message)

    def drain(self) -> None:
        """Let the engine finish and exit, and start no other."""
        self._draining = True
        self.send(Drain())

    def unload(self) -> None:
        """Let the engine, which has no request, exit and so give back its device; `wake` starts the next one."""
        logger.info("the engine on %s has had no work for long: it is unloaded", self.device)
        self._unloading, self._failures = True, 0
        self._wanted.clear()
        self.send(Drain())
        self._set_state(State.UNLOADED, "The engine is unloaded, as it had no work; the next call loads it again.")

    def wake(self) -> None:
        """Start an engine again that was unloaded, once the old one has ended."""
        self._wanted.set()
        self._set_state(State.STARTING, "Starting the engine again, which was unloaded.")

    def note_finished(self) -> None:
        """Note that a request was finished: the device works."""
        self._failures = 0

    async def keep_running(self) -> None:
        """Run engines on the device, one after the other, until drained or SETUP_FAILED."""
        last = False
        while not last:
            try:
                last = await self._run_next()
            except Exception as error:  # noqa: BLE001 - whatever it is, the device must not stay STARTING
                self._note_fault(error)
                await asyncio.sleep(self._restart_policy.defunct_pause_s)
                self.restarts += 1

    async def _run_next(self) -> bool:
        """Run one engine to its end, and pause. Return whether it was the last."""
        end = await self._run_one()
        if self._draining:
            return True
        if not end:
            return False
        if self._unloading:
            await self._wanted.wait()
            return False
        self._note_end(end)
        self._owner.on_engine_end(self)
        if self.state is State.SETUP_FAILED:
            return True
        await asyncio.sleep(self._restart_policy.pause_s(self._failures))
        self.restarts += 1
        return False

    async def _run_one(self) -> str:
        """Run one engine to its end. Return why it ended, in words after "because"; "" if it has found its weights."""
        self._ready_at, self._unloading, self._waits = math.inf, False, False
        try:
            engine = self._engine = await self._process.start(self._launch, self._config, self._hear)
        except OSError as error:
            return f"it could not be started ({error.strerror or error}: {self._launch.command[0]})"
        except Exception as error:  # noqa: BLE001 - an end like any other, and said
            return _unforeseen("it could not be started", error)
        try:
            await engine.over()
            if self.state is State.READY:  # while it is reaped, it must be sent nothing
                self._set_state(State.STARTING, "The engine has ended.")
        finally:
            self._engine = None
            status = await engine.reap()
        if status == EXIT_WEIGHTS_FOUND:
            logger.info("the weights are there: the engine on %s is started again", self.device)
            self._set_state(State.STARTING, "The weights are there; starting the engine.")
            return ""
        if status == EXIT_CAPTURE_FAILED:
            self._config, self.graphs_failed = msgspec.structs.replace(self._config, graphs="off"), True
        return engine.fault or describe_exit(status)

    def _hear(self, message: FromEngine) -> None:
        match message:
            case Loading(fraction, what) if self.state is State.STARTING:
                self.detail = f"{what} ({fraction:.0%})"
            case Beat() | Loading():
                pass
            case Ready() if self._engine is None:
                pass  # the last message of one that is being reaped
            case Ready(model=model, device=device, notice=notice):
                notice = " ".join(filter(None, (notice, _WITHOUT_GRAPHS if self.graphs_failed else "")))
                self.model, self.device, self.notice = model, device, notice
                self.dtype, self.torch = message.dtype, message.torch
                self.capacity, self.decoders, self.processors = message.capacity, message.decoders, message.processors
                self._ready_at = asyncio.get_running_loop().time()
                with_torch = f", torch {self.torch}" if self.torch else ""
                logger.info("%s is ready on %s: %s%s", model, device, self.dtype, with_torch)
                if notice:
                    logger.warning("%s", notice)
                self._set_state(State.READY, "")
            case SetupFailed(reason, hint, waits):
                detail = f"{reason} {hint} {_LOOKS if waits else 'Then start the server again.'}"
                if not self._waits:
                    logger.error("the model can't be loaded: %s", detail)
                self._waits = waits
                self._set_state(State.SETUP_FAILED, detail)
            case _:
                self._owner.on_message(self, message)

    def _note_end(self, end: str) -> None:
        if self.state is State.SETUP_FAILED and not self._waits:
            return
        logger.error("the engine on %s has ended: %s", self.device, end)
        stable = asyncio.get_running_loop().time() > self._ready_at + self._restart_policy.stable_s
        self._failures = 1 if stable else self._failures + 1
        if self._failures >= self._restart_policy.failures:
            times = f"{self._failures} times in a row, the last time because {end}."
            self._set_state(State.DEFUNCT, self._defunct(f"The engine on {self.device} has ended {times}"))
        else:
            self._set_state(State.STARTING, f"The engine has ended because {end}; it is started again.")

    def _note_fault(self, error: Exception) -> None:
        """Take the device out of service: the server itself has failed at an engine's end."""
        why = _unforeseen("the server could not handle it", error)
        self.state = State.DEFUNCT
        self.detail = self._defunct(f"The engine on {self.device} has ended, and {why}.")
        # From the loop, which logs what the owner may raise.
        asyncio.get_running_loop().call_soon(self._owner.on_engine_end, self)

    def _defunct(self, what: str) -> str:
        """Return the detail of a device that is out of service."""
        pause_s = self._restart_policy.defunct_pause_s
        return f"{what} See the log and `fourstep doctor`; it is tried again every {pause_s / 60:.0f} minutes."

    def _set_state(self, state: State, detail: str) -> None:
        self.state, self.detail = state, detail
        self._owner.on_state_change()


def _unforeseen(what: str, error: Exception) -> str:
    """Log an unforeseen exception. Return `what` with the exception's type, in words that follow "because"."""
    fault(what, error)
    return f"{what} ({type(error).__name__}, see the log)"

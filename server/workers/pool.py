"""The pool: an engine process per device, and the requests that wait for one, are in hand, or must be run again.

    run ─▶ line ─▶ an engine's hands ─▶ answer
             ▲            │ the engine died
             └────────────┘ alone: a strike; with others: suspects, run one at a time

Who goes to which engine is `server.workers.dispatcher`' to say. A request whose engine died is run again. Who killed
it can't be known when there were several: each of them is then run on an engine that has nothing else, and one that
has seen three engines die alone, or ten in any company, is answered with an error.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from pipelines.messages import (
    PATIENCE_S,
    Cancel,
    Cancelled,
    EngineConfig,
    Failed,
    FromEngine,
    Generated,
    Log,
    Preview,
    Started,
    Work,
)
from server.environment import child_environment
from server.fal.errors import RequestError
from server.workers.dispatcher import RERUN_LIMITS, Dispatcher, Event, PendingRequest, RerunLimits, verdict
from server.workers.process import PROCESS_TIMES, Launch, ProcessTimes
from server.workers.supervisor import RESTART_POLICY, RestartPolicy, State, Supervisor

__all__ = ["Pool", "State"]

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "pipelines.worker")

# What libraries in an engine process read: nothing leaves the box but what was asked for.
ENVIRONMENT = {
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # one short prompt at a time: its threads would only be in torch's way
}

# For an orderly exit after the last answer: there is nothing left to do by then.
EXIT_S = 2.0

# The pool is as well as the best of its engines.
_BEST_FIRST = (State.READY, State.BUSY, State.STARTING, State.DEFUNCT, State.SETUP_FAILED)
_HOPELESS = (State.DEFUNCT, State.SETUP_FAILED)


class Pool:
    """Engines for `devices`, one each. `config` is what they share."""

    def __init__(
        self,
        config: EngineConfig,
        devices: Sequence[str],
        *,
        start_timeout_s: float = 120.0,
        command: Sequence[str] = COMMAND,
        patience_s: float = PATIENCE_S,
        times: ProcessTimes = PROCESS_TIMES,
        restarts: RestartPolicy = RESTART_POLICY,
        reruns: RerunLimits = RERUN_LIMITS,
    ) -> None:
        compiled = str(Path(config.data_dir) / "compiled")  # what torch.compile makes, for the next start
        environment = child_environment(**ENVIRONMENT, TORCHINDUCTOR_CACHE_DIR=compiled)
        launch = Launch(command=command, environment=environment, patience_s=patience_s, times=times)
        self._supervisors = [
            Supervisor(msgspec.structs.replace(config, device=device), launch, self, restarts) for device in devices
        ]
        self._dispatcher = Dispatcher(self._supervisors)
        self._ids: set[str] = set()
        self._reruns = reruns
        self._start_timeout_s = start_timeout_s
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._moved = asyncio.Event()  # set whenever a state changes or a request ends

    # --- what the rest of the server sees ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The best of the engines' states."""
        return min(map(self._state_of, self._supervisors), key=_BEST_FIRST.index)

    @property
    def detail(self) -> str:
        """How far loading is, or what is to be done; "" when all is well. For people."""
        return next(
            (supervisor.detail for supervisor in self._supervisors if self._state_of(supervisor) is self.state), ""
        )

    @property
    def model(self) -> str:
        """What is loaded: "demo", a hub id, a file's name; "" before the first engine is ready."""
        return next((supervisor.model for supervisor in self._supervisors if supervisor.model), "")

    @property
    def notice(self) -> str:
        """What the operator must know of the model that is loaded."""
        return next((supervisor.notice for supervisor in self._supervisors if supervisor.notice), "")

    @property
    def engines(self) -> list[dict[str, str | int | None]]:
        """Each engine's `device`, `pid`, `state` and `restarts`."""
        return [
            {
                "device": supervisor.device,
                "pid": supervisor.pid,
                "state": self._state_of(supervisor),
                "restarts": supervisor.restarts,
            }
            for supervisor in self._supervisors
        ]

    @property
    def capacity(self) -> int:
        """How many requests the engines that are up want in hand, all together."""
        return sum(supervisor.capacity for supervisor in self._supervisors if supervisor.state is State.READY)

    async def start(self) -> None:
        """Start the engines; returns at once, they load meanwhile."""
        self._tasks = [
            asyncio.create_task(supervisor.keep_running(), name=supervisor.device) for supervisor in self._supervisors
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def loaded_model(self) -> str:
        """`model`, once the first engine is ready; "" when it can't be had. Raises `RequestError` `startup_timeout`."""
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while not self.model and self.state not in _HOPELESS and not self._closing:
                    await self._next_move()
        except TimeoutError:
            raise self._late() from None
        return self.model

    def check(self) -> None:
        """Raises `RequestError` `runner_scheduling_failure`, with the mend, when there is no hope of an engine."""
        if self._closing:
            raise RequestError("runner_scheduling_failure", "The server is stopping.")
        if self.state in _HOPELESS:
            raise RequestError("runner_scheduling_failure", self.detail)

    async def run(self, work: Work, on_event: Callable[[Event], None] | None = None) -> Generated:
        """Have an engine do this, and say what it says on the way to `on_event`. Cancelling stops it on the device.

        Another with the same id goes first if it is still here: a cancelled one is until its engine lets go of it.
        Raises `InvalidInput` for a picture that can't be used and `RequestError` for everything else:
        `startup_timeout`, `runner_scheduling_failure`, `runner_disconnected`, `runner_server_error`.
        """
        self.check()
        while work.id in self._ids:
            await self._next_move()
        self._ids.add(work.id)
        loop = asyncio.get_running_loop()
        pending = PendingRequest(work, on_event, loop.create_future(), loop.time())
        self._dispatcher.queue(pending)
        self._set_timer(pending)
        self._dispatch()
        try:
            return await pending.answer
        finally:
            self._leave(pending)

    async def close(self, grace_s: float) -> None:
        """Take nothing new, give what is here `grace_s` seconds to finish, then end the engines."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._ids:
                    await self._next_move()
        for pending in [*self._dispatcher.waiting, *self._dispatcher.assigned]:
            pending.settle(RequestError("runner_disconnected", "The server is stopping."))
        for supervisor, task in zip(self._supervisors, self._tasks, strict=True):
            if supervisor.state is State.READY and not self._dispatcher.count(supervisor):
                supervisor.drain()
            else:
                task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=EXIT_S)
            for task in late:
                task.cancel()
            await asyncio.wait(self._tasks)

    # --- what a slot says (its Owner) --------------------------------------------------------------------------------

    def heard(self, supervisor: Supervisor, message: FromEngine) -> None:
        """Pass a message on to whose request it is about."""
        match message:
            case Started(id=request_id) | Log(id=request_id) | Preview(id=request_id):
                pending = self._dispatcher.get(supervisor, request_id)
                if pending is not None:
                    pending.tell(message)
            case Generated(id=request_id) | Failed(id=request_id) | Cancelled(id=request_id):
                pending = self._dispatcher.pop(supervisor, request_id)
                supervisor.finished_one()
                if pending is not None:
                    self._settle(pending, message)
                self._dispatch()

    def changed(self) -> None:
        """A slot is in another state: what waits may go, may wait only so long, or waits in vain."""
        if self.state in _HOPELESS:
            for pending in self._dispatcher.waiting:
                pending.settle(RequestError("runner_scheduling_failure", self.detail))
        for pending in self._dispatcher.waiting:
            self._set_timer(pending)
        self._moved.set()
        self._dispatch()

    def lost(self, supervisor: Supervisor) -> None:
        """Have what the engine had in hand run again, by itself; or not, if it has been the end of too many."""
        requests = self._dispatcher.empty(supervisor)
        for pending in requests:
            pending.tries += 1
            pending.solo_failures += len(requests) == 1
            if pending.answer.done():
                self._forget(pending)
            elif pending.exhausted(self._reruns):
                pending.settle(RequestError("runner_server_error", f"The engine ended {pending.tries} times on this."))
            else:
                pending.tell(Log(pending.work.id, "The engine ended; the request is run again.", "WARN"))
                self._dispatcher.queue(pending, suspect=True)
                self._set_timer(pending)
        self.changed()

    # --- how a request waits -----------------------------------------------------------------------------------------

    def _leave(self, pending: PendingRequest) -> None:
        """The caller has its answer or has gone away."""
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.queue is not None:
            pending.queue.remove(pending)
            pending.queue = None
        if pending.supervisor is not None:
            pending.supervisor.send(Cancel(pending.work.id))  # it stays in hand until the engine says that it is out
        else:
            self._forget(pending)

    def _forget(self, pending: PendingRequest) -> None:
        self._ids.discard(pending.work.id)
        self._moved.set()

    def _settle(self, pending: PendingRequest, message: Generated | Failed | Cancelled) -> None:
        """Answer with an engine's last word on a request."""
        if pending.answer.done():
            self._forget(pending)  # the caller is gone
        else:
            pending.settle(verdict(message))

    def _dispatch(self) -> None:
        self._dispatcher.dispatch(asyncio.get_running_loop().time())

    async def _next_move(self) -> None:
        """Return when a state has changed or a request has gone."""
        self._moved.clear()
        await self._moved.wait()

    def _set_timer(self, pending: PendingRequest) -> None:
        """A waiting request's time runs while no engine is up."""
        up = any(supervisor.state is State.READY for supervisor in self._supervisors)
        if up and pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None
        if not up and pending.timer is None:
            loop = asyncio.get_running_loop()
            pending.timer = loop.call_later(self._start_timeout_s, self._expire, pending)

    def _expire(self, pending: PendingRequest) -> None:
        pending.settle(self._late())

    def _late(self) -> RequestError:
        return RequestError("startup_timeout", f"No engine was ready in time. {self.detail}")

    def _state_of(self, supervisor: Supervisor) -> State:
        if supervisor.state is State.READY and self._dispatcher.count(supervisor) >= supervisor.capacity:
            return State.BUSY
        return supervisor.state


def _report(task: asyncio.Task[None]) -> None:
    """A slot's task ends by itself only where nothing is left to run."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the engine on %s is no longer looked after", task.get_name(), exc_info=task.exception())

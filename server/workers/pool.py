"""The pool of engine processes, one per device: runs requests on them, again when an engine dies.

    run ─▶ queue ─▶ assigned to an engine ─▶ answer
             ▲                │ the engine died
             └────────────────┘ as suspects, run one at a time

A request whose engine died is run again; after three engines that died with no other suspect, or ten in any company, it
fails. Which of several killed the engine is unknown: each is then run where nothing else is, unless a decoder had it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec
from typing_extensions import override

from pipelines.messages import (
    PATIENCE_S,
    QUICK_BYTES,
    Cancel,
    Cancelled,
    Decoded,
    EngineConfig,
    Failed,
    FromEngine,
    Generated,
    Large,
    Log,
    Preview,
    Started,
    Work,
)
from server.fal.errors import RequestError
from server.logs import fault
from server.workers.dispatcher import Dispatcher
from server.workers.idle import IdleUnload
from server.workers.launch import COMMAND, launch
from server.workers.pending import RERUN_LIMITS, Event, PendingRequest, RerunLimits, verdict
from server.workers.process import PROCESS_TIMES, ProcessTimes
from server.workers.supervisor import RESTART_POLICY, Owner, RestartPolicy, State, Supervisor

__all__ = ["Pool", "State"]

logger = logging.getLogger(__name__)

# Seconds for an engine's exit after the last answer, when it has nothing left to do.
EXIT_S = 2.0

_BEST_FIRST = (State.READY, State.BUSY, State.STARTING, State.UNLOADED, State.DEFUNCT, State.SETUP_FAILED)
_HOPELESS = (State.DEFUNCT, State.SETUP_FAILED)
_NO_ENGINE = "This box has no engine (--device none): others have."
_TOLD = ("device", "pid", "restarts", "graphs_failed", "model", "dtype", "torch")


class Pool(Owner):
    """Engines for `devices`, one each, with the same `config` but for the device."""

    def __init__(
        self,
        config: EngineConfig,
        devices: Sequence[str],
        *,
        start_timeout_s: float = 120.0,
        idle_unload_s: float = 0.0,
        command: Sequence[str] = COMMAND,
        patience_s: float = PATIENCE_S,
        times: ProcessTimes = PROCESS_TIMES,
        restarts: RestartPolicy = RESTART_POLICY,
        reruns: RerunLimits = RERUN_LIMITS,
    ) -> None:
        how = launch(command, patience_s, times)
        self._supervisors = [
            Supervisor(msgspec.structs.replace(config, device=device), how, self, restarts) for device in devices
        ]
        self._dispatcher = Dispatcher(self._supervisors)
        self._idle = IdleUnload(self._supervisors, self._dispatcher, idle_unload_s)
        self._ids: set[str] = set()
        self._reruns = reruns
        self._start_timeout_s = start_timeout_s
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._moved = asyncio.Event()  # set whenever a state changes or a request ends

    # --- the rest of the server calls ---------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Return the best of the engines' states; READY without engines, as all is well."""
        return min(map(self._state_of, self._supervisors), key=_BEST_FIRST.index, default=State.READY)

    @property
    def detail(self) -> str:
        """Return the progress of loading or what the operator has to do, human-readable; "" when all is well."""
        return next((each.detail for each in self._supervisors if self._state_of(each) is self.state), "")

    @property
    def model(self) -> str:
        """Return the loaded model: "demo", a hub id, a file's name; "" before the first engine is ready."""
        return next((supervisor.model for supervisor in self._supervisors if supervisor.model), "")

    @property
    def notice(self) -> str:
        """Return what the operator must know of the engines, "" for nothing."""
        return " ".join(dict.fromkeys(supervisor.notice for supervisor in self._supervisors if supervisor.notice))

    @property
    def engines(self) -> list[dict[str, str | int | None]]:
        """Return each engine's `device`, `state` and so on, for `/health`; `model` and the like: of the latest one."""
        return [
            {name: getattr(supervisor, name) for name in _TOLD} | {"state": self._state_of(supervisor)}
            for supervisor in self._supervisors
        ]

    @property
    def capacity(self) -> int:
        """Return the number of requests that the engines, ready or unloaded, take at once, all together."""
        return sum(each.capacity for each in self._supervisors if each.state in {State.READY, State.UNLOADED})

    @property
    def calls(self) -> int:
        """Return the number of requests that are no jobs and take capacity, or wait for it."""
        return self._dispatcher.calls

    async def start(self) -> None:
        """Start the engines; return at once, before they have loaded."""
        self._tasks = [
            asyncio.create_task(supervisor.keep_running(), name=supervisor.device) for supervisor in self._supervisors
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def loaded_model(self) -> str:
        """Return `model` once an engine is ready, "" if it can't be loaded. Raises `RequestError` `startup_timeout`."""
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while self._supervisors and not (self.model or self.state in _HOPELESS or self._closing):
                    await self._next_move()
        except TimeoutError:
            raise self._late() from None
        return self.model

    def check(self) -> None:
        """Raise `RequestError` `runner_scheduling_failure`, with a hint, if no engine is or will become ready."""
        if self._closing:
            raise RequestError("runner_scheduling_failure", "The server is stopping.")
        if self.state in _HOPELESS or not self._supervisors:
            raise RequestError("runner_scheduling_failure", self.detail or _NO_ENGINE)

    async def run(self, work: Work, on_event: Callable[[Event], None] | None = None) -> Generated:
        """Run a request on an engine and pass its events to `on_event`. Cancelling stops it on the device.

        An earlier request of the same id is waited for; a cancelled one stays until its engine has dropped it. Raises
        `InvalidInput` for a picture that can't be used and `RequestError` for everything else: `startup_timeout`,
        `runner_scheduling_failure`, `runner_disconnected`, `runner_server_error`.
        """
        self.check()
        while work.id in self._ids:
            await self._next_move()
        self._ids.add(work.id)
        loop = asyncio.get_running_loop()
        pending = PendingRequest(work, on_event, loop.create_future(), loop.time())
        if len(work.image) > QUICK_BYTES:
            pending.note_large(Large(work.id, alone=False))  # if it takes much memory, the engine gives it back
        self._dispatcher.queue(pending)
        self._set_timer(pending)
        self._dispatch()
        try:
            return await pending.answer
        finally:
            self._leave(pending)

    async def close(self, grace_s: float) -> None:
        """Refuse new requests, wait up to `grace_s` seconds for the others, then end the engines."""
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

    # --- supervisors call ---------------------------------------------------------------------------------------------

    @override
    def on_message(self, supervisor: Supervisor, message: FromEngine) -> None:
        now = asyncio.get_running_loop().time()
        match message:
            case Started(id=request_id) | Log(id=request_id) | Preview(id=request_id):
                pending = self._dispatcher.get(supervisor, request_id)
                if pending is not None:
                    pending.tell(message)
            case Decoded():
                self._dispatcher.note_decoded(supervisor, message, now)
                self._dispatch()
            case Large():
                pending = self._dispatcher.give_back(supervisor, message, now)
                if pending is not None:
                    self._requeue(pending)
                self._dispatch()
            case Generated(id=request_id) | Failed(id=request_id) | Cancelled(id=request_id):
                pending = self._dispatcher.pop(supervisor, request_id, now)
                supervisor.note_finished()
                if pending is not None and pending.answer.done():
                    self._forget(pending)  # the caller is gone
                elif pending is not None:
                    pending.settle(verdict(message))
                self._dispatch()

    @override
    def on_state_change(self) -> None:
        if self.state in _HOPELESS:
            for pending in self._dispatcher.waiting:
                pending.settle(RequestError("runner_scheduling_failure", self.detail))
        for pending in self._dispatcher.waiting:
            self._set_timer(pending)
        self._moved.set()
        self._dispatch()

    @override
    def on_engine_end(self, supervisor: Supervisor) -> None:
        requests = self._dispatcher.empty(supervisor, asyncio.get_running_loop().time())
        for pending in requests:
            if pending.exhausted(self._reruns):
                pending.settle(RequestError("runner_server_error", f"The engine ended {pending.tries} times on this."))
            self._requeue(pending)
        for pending in requests:
            pending.tell(Log(pending.work.id, "The engine ended; the request is run again.", "WARN"))
        self.on_state_change()

    # --- waiting requests ---------------------------------------------------------------------------------------------

    def _leave(self, pending: PendingRequest) -> None:
        """Remove a request whose caller has its answer or is gone."""
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.queue is not None:
            pending.queue.remove(pending)
            pending.queue = None
        if pending.supervisor is not None:
            pending.supervisor.send(Cancel(pending.work.id))  # assigned until the engine confirms
        else:
            self._forget(pending)

    def _requeue(self, pending: PendingRequest) -> None:
        """Let a request wait again that its engine has not finished, unless it is answered or its caller is gone."""
        if pending.answer.done():
            self._forget(pending)
        else:
            self._dispatcher.queue(pending)
            self._set_timer(pending)

    def _forget(self, pending: PendingRequest) -> None:
        self._ids.discard(pending.work.id)
        self._moved.set()

    def _dispatch(self) -> None:
        self._dispatcher.dispatch(asyncio.get_running_loop().time())
        self._idle.look()

    async def _next_move(self) -> None:
        """Return when a state has changed or a request has been removed."""
        self._moved.clear()
        await self._moved.wait()

    def _set_timer(self, pending: PendingRequest) -> None:
        """Limit how long a request waits while no engine is ready; lift the limit while one is."""
        up = any(supervisor.state is State.READY for supervisor in self._supervisors)
        if up and pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None
        if not up and pending.timer is None:
            loop = asyncio.get_running_loop()
            pending.timer = loop.call_later(self._start_timeout_s, lambda: pending.settle(self._late()))

    def _late(self) -> RequestError:
        return RequestError("startup_timeout", f"No engine was ready in time. {self.detail}")

    def _state_of(self, supervisor: Supervisor) -> State:
        if supervisor.state is State.READY and len(self._dispatcher.load(supervisor)) >= supervisor.capacity:
            return State.BUSY
        return supervisor.state


def _report(task: asyncio.Task[None]) -> None:
    """Log a supervisor's failure, which leaves its device without an engine."""
    if not task.cancelled() and (error := task.exception()) is not None:
        fault(f"the engine on {task.get_name()} is no longer supervised", error)

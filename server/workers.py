"""The pool: an engine process per device, and the requests that wait for one, are in hand, or must be run again.

    run ─▶ line ─▶ an engine's hands ─▶ answer
             ▲            │ the engine died
             └────────────┘ alone: a strike; with others: suspects, run one at a time

An engine gets no more than it wants in hand, so that what waits can still be put in order here; only requests more
urgent than those in hand may come on top (the engine takes them at its next step). A request whose engine died is run
again. Who killed it can't be known when there were several: each of them is then run on an engine that has nothing
else, and one that has seen three engines die alone, or ten in any company, is answered with an error.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from pipelines.types import (
    INPUT_FAULTS,
    PATIENCE_S,
    Cancel,
    Cancelled,
    EngineConfig,
    Failed,
    FromEngine,
    Generated,
    Log,
    Preview,
    Priority,
    Started,
    Work,
)
from server.dispatch import Line
from server.engine_slot import Launch, Slot, State
from server.errors import FalError, RequestError, invalid
from server.settings import child_environment

__all__ = ["Event", "Pool", "State"]

logger = logging.getLogger(__name__)

Event: TypeAlias = Started | Log | Preview

COMMAND = (sys.executable, "-P", "-m", "pipelines.worker")

# What libraries in an engine process read: nothing leaves the box but what was asked for.
ENVIRONMENT = {
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # one short prompt at a time: its threads would only be in torch's way
}

STRIKES = 3
TRIES = 10

# For an orderly exit after the last answer: there is nothing left to do by then.
EXIT_S = 2.0

# The pool is as well as the best of its engines.
_BEST_FIRST = (State.READY, State.BUSY, State.STARTING, State.DEFUNCT, State.SETUP_FAILED)
_HOPELESS = (State.DEFUNCT, State.SETUP_FAILED)


@dataclasses.dataclass(eq=False, slots=True)
class Ticket:
    """A request in the pool: either it waits in `line`, or `slot` has it in hand.

    `level`: the class that it counted as when it was sent. `tries` and `strikes`: engines that ended with it in hand,
    and those of them that had nothing else.
    """

    work: Work
    on_event: Callable[[Event], None] | None
    answer: asyncio.Future[Generated]
    arrived: float
    line: "Line[Ticket] | None" = None
    slot: Slot | None = None
    level: int = 0
    strikes: int = 0
    tries: int = 0
    timer: asyncio.TimerHandle | None = None

    @property
    def priority(self) -> Priority:
        """The work's priority."""
        return self.work.priority

    @property
    def tenant(self) -> str:
        """Whom fairness counts it for."""
        return self.work.tenant

    @property
    def cost(self) -> int:
        """Images."""
        return self.work.params.num_images


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
    ) -> None:
        compiled = str(Path(config.data_dir) / "compiled")  # what torch.compile makes, for the next start
        environment = child_environment(**ENVIRONMENT, TORCHINDUCTOR_CACHE_DIR=compiled)
        launch = Launch(command=command, environment=environment, patience_s=patience_s)
        self._slots = [Slot(msgspec.structs.replace(config, device=device), launch, self) for device in devices]
        self._hands: dict[Slot, dict[str, Ticket]] = {slot: {} for slot in self._slots}
        self._line = Line[Ticket]()
        self._suspects = Line[Ticket]()
        self._ward: Slot | None = None  # the engine that is kept for suspects
        self._ids: set[str] = set()
        self._start_timeout_s = start_timeout_s
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._moved = asyncio.Event()  # set whenever a state changes or a request ends

    # --- what the rest of the server sees ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The best of the engines' states."""
        return min(map(self._state_of, self._slots), key=_BEST_FIRST.index)

    @property
    def detail(self) -> str:
        """How far loading is, or what is to be done; "" when all is well. For people."""
        return next((slot.detail for slot in self._slots if self._state_of(slot) is self.state), "")

    @property
    def model(self) -> str:
        """What is loaded: "demo", a hub id, a file's name; "" before the first engine is ready."""
        return next((slot.model for slot in self._slots if slot.model), "")

    @property
    def notice(self) -> str:
        """What the operator must know of the model that is loaded."""
        return next((slot.notice for slot in self._slots if slot.notice), "")

    @property
    def engines(self) -> list[dict[str, str | int | None]]:
        """Each engine's `device`, `pid`, `state` and `restarts`."""
        return [
            {"device": slot.device, "pid": slot.pid, "state": self._state_of(slot), "restarts": slot.restarts}
            for slot in self._slots
        ]

    @property
    def capacity(self) -> int:
        """How many requests the engines that are up want in hand, all together."""
        return sum(slot.capacity for slot in self._slots if slot.state is State.READY)

    async def start(self) -> None:
        """Start the engines; returns at once, they load meanwhile."""
        self._tasks = [asyncio.create_task(slot.keep_running(), name=slot.device) for slot in self._slots]
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
        ticket = Ticket(work, on_event, loop.create_future(), loop.time())
        self._queue(ticket, self._line)
        self._dispatch()
        try:
            return await ticket.answer
        finally:
            self._leave(ticket)

    async def close(self, grace_s: float) -> None:
        """Take nothing new, give what is here `grace_s` seconds to finish, then end the engines."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._ids:
                    await self._next_move()
        held = [ticket for hand in self._hands.values() for ticket in hand.values()]
        for ticket in [*self._line, *self._suspects, *held]:
            _fail(ticket, RequestError("runner_disconnected", "The server is stopping."))
        for slot, task in zip(self._slots, self._tasks, strict=True):
            if slot.state is State.READY and not self._hands[slot]:
                slot.drain()
            else:
                task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=EXIT_S)
            for task in late:
                task.cancel()
            await asyncio.wait(self._tasks)

    # --- what a slot says (its Owner) --------------------------------------------------------------------------------

    def heard(self, slot: Slot, message: FromEngine) -> None:
        """Pass a message on to whose request it is about."""
        match message:
            case Started(id=request_id) | Log(id=request_id) | Preview(id=request_id):
                ticket = self._hands[slot].get(request_id)
                if ticket is not None:
                    _tell(ticket, message)
            case Generated(id=request_id) | Failed(id=request_id) | Cancelled(id=request_id):
                ticket = self._hands[slot].pop(request_id, None)
                slot.finished_one()
                if ticket is not None:
                    ticket.slot = None
                    self._settle(ticket, message)
                self._dispatch()

    def changed(self) -> None:
        """A slot is in another state: what waits may go, may wait only so long, or waits in vain."""
        if self.state in _HOPELESS:
            for ticket in [*self._line, *self._suspects]:
                _fail(ticket, RequestError("runner_scheduling_failure", self.detail))
        for ticket in [*self._line, *self._suspects]:
            self._set_timer(ticket)
        self._moved.set()
        self._dispatch()

    def lost(self, slot: Slot) -> None:
        """Have what the engine had in hand run again, by itself; or not, if it has been the end of too many."""
        tickets, self._hands[slot] = list(self._hands[slot].values()), {}
        if self._ward is slot:
            self._ward = None
        for ticket in tickets:
            ticket.slot = None
            ticket.tries += 1
            ticket.strikes += len(tickets) == 1
            if ticket.answer.done():
                self._forget(ticket)
            elif ticket.strikes >= STRIKES or ticket.tries >= TRIES:
                _fail(ticket, RequestError("runner_server_error", f"The engine ended {ticket.tries} times on this."))
            else:
                _tell(ticket, Log(ticket.work.id, "The engine ended; the request is run again.", "WARN"))
                self._queue(ticket, self._suspects)
        self.changed()

    # --- who goes where ----------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Send what waits to engines that have room for it."""
        now = asyncio.get_running_loop().time()
        self._send_suspect(now)
        while any(self._sent(ticket, now) for ticket in self._line.heads(now)):
            pass

    def _sent(self, ticket: Ticket, now: float) -> bool:
        """Send it where there is room. If there is none for the first in line, another may be below its share."""
        level = ticket.priority.level(now - ticket.arrived)
        slot = self._freest(level, ticket.tenant)
        if slot is None:
            return False
        self._send(self._line, ticket, slot, level)
        return True

    def _send_suspect(self, now: float) -> None:
        """Run suspects one at a time on an engine that gets nothing else meanwhile: the first to be free of others."""
        ready = [slot for slot in self._slots if slot.state is State.READY]
        if self._suspects and self._ward not in ready:
            self._ward = min(ready, key=lambda slot: len(self._hands[slot]), default=None)
        if self._ward is None or self._hands[self._ward]:
            return
        if self._suspects:
            self._send(self._suspects, self._suspects.first(now), self._ward, level=0)
        else:
            self._ward = None

    def _freest(self, level: int, tenant: str) -> Slot | None:
        """The least loaded engine with room for a request of this class and tenant."""
        free = [
            slot
            for slot in self._slots
            if slot.state is State.READY and slot is not self._ward and self._has_room(slot, level, tenant)
        ]
        return min(free, key=lambda slot: sum(ticket.cost for ticket in self._hands[slot].values()), default=None)

    def _has_room(self, slot: Slot, level: int, tenant: str) -> bool:
        """Those less urgent don't count; one of a tenant that has less than an equal share goes on top."""
        hand = self._hands[slot].values()
        share = collections.Counter(ticket.tenant for ticket in hand)
        part = slot.capacity // len({*share, tenant})
        allowed = 2 * slot.capacity if share[tenant] < part else slot.capacity
        return sum(ticket.level <= level for ticket in hand) < allowed

    def _send(self, line: Line[Ticket], ticket: Ticket, slot: Slot, level: int) -> None:
        line.take(ticket)
        ticket.line, ticket.slot, ticket.level = None, slot, level
        self._hands[slot][ticket.work.id] = ticket
        slot.send(ticket.work)

    # --- how a request waits -----------------------------------------------------------------------------------------

    def _queue(self, ticket: Ticket, line: Line[Ticket]) -> None:
        line.add(ticket)
        ticket.line = line
        self._set_timer(ticket)

    def _leave(self, ticket: Ticket) -> None:
        """The caller has its answer or has gone away."""
        if ticket.timer is not None:
            ticket.timer.cancel()
        if ticket.line is not None:
            ticket.line.remove(ticket)
            ticket.line = None
        if ticket.slot is not None:
            ticket.slot.send(Cancel(ticket.work.id))  # it stays in hand until the engine says that it is out
        else:
            self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        self._ids.discard(ticket.work.id)
        self._moved.set()

    def _settle(self, ticket: Ticket, message: Generated | Failed | Cancelled) -> None:
        """Answer with an engine's last word on a request."""
        if ticket.answer.done():
            self._forget(ticket)  # the caller is gone
        elif isinstance(message, Generated):
            ticket.answer.set_result(message)
        elif isinstance(message, Cancelled):
            _fail(ticket, RequestError("client_cancelled", "The request was cancelled."))
        elif message.kind in INPUT_FAULTS:
            _fail(ticket, invalid("image_url", message.kind, message.message, message.ctx))
        else:
            _fail(ticket, RequestError("runner_server_error", message.message))

    async def _next_move(self) -> None:
        """Return when a state has changed or a request has gone."""
        self._moved.clear()
        await self._moved.wait()

    def _set_timer(self, ticket: Ticket) -> None:
        """A waiting request's time runs while no engine is up."""
        up = any(slot.state is State.READY for slot in self._slots)
        if up and ticket.timer is not None:
            ticket.timer.cancel()
            ticket.timer = None
        if not up and ticket.timer is None:
            loop = asyncio.get_running_loop()
            ticket.timer = loop.call_later(self._start_timeout_s, self._expire, ticket)

    def _expire(self, ticket: Ticket) -> None:
        _fail(ticket, self._late())

    def _late(self) -> RequestError:
        return RequestError("startup_timeout", f"No engine was ready in time. {self.detail}")

    def _state_of(self, slot: Slot) -> State:
        if slot.state is State.READY and len(self._hands[slot]) >= slot.capacity:
            return State.BUSY
        return slot.state


def _tell(ticket: Ticket, event: Event) -> None:
    """Pass on an event. If the listener fails, so does its request, and nothing else."""
    if ticket.on_event is None or ticket.answer.done():
        return
    try:
        ticket.on_event(event)
    except Exception as error:  # noqa: BLE001 – it reaches the listener's owner as `run`'s
        ticket.answer.set_exception(error)


def _fail(ticket: Ticket, error: FalError) -> None:
    if not ticket.answer.done():
        ticket.answer.set_exception(error)


def _report(task: asyncio.Task[None]) -> None:
    """A slot's task ends by itself only where nothing is left to run."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the engine on %s is no longer looked after", task.get_name(), exc_info=task.exception())

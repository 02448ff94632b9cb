"""Which engine has what in hand, who waits for one, and who gets what next.

An engine gets no more than it wants in hand, so that what waits can still be put in order here; only requests more
urgent than those in hand may come on top (the engine takes them at its next step). Suspects, whose engine died while it
had others in hand too, are run one at a time on an engine that has nothing else.
"""

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

from pipelines.messages import (
    INPUT_FAULTS,
    Cancelled,
    Failed,
    Generated,
    Log,
    Preview,
    Priority,
    Started,
    Work,
    fair_limit,
)
from server.fal.errors import FalError, RequestError, invalid
from server.workers.fair_queue import FairQueue
from server.workers.supervisor import State, Supervisor

Event: TypeAlias = Started | Log | Preview


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerunLimits:
    """How many engines may end while they have a request, until it is answered with an error.

    `solo_failures`: engines which had nothing else. `tries`: engines in any company.
    """

    solo_failures: int = 3
    tries: int = 10


RERUN_LIMITS = RerunLimits()


@dataclasses.dataclass(eq=False, slots=True)
class PendingRequest:
    """A request in the pool: either it waits in `queue`, or `supervisor` has it in hand.

    `level`: the class that it counted as when it was sent. `tries` and `solo_failures`: engines that ended with it,
    and those of them that had nothing else.
    """

    work: Work
    on_event: Callable[[Event], None] | None
    answer: asyncio.Future[Generated]
    arrived: float
    queue: "FairQueue[PendingRequest] | None" = None
    supervisor: Supervisor | None = None
    level: int = 0
    solo_failures: int = 0
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

    def exhausted(self, limits: RerunLimits) -> bool:
        """Return whether it may not be run again."""
        return self.solo_failures >= limits.solo_failures or self.tries >= limits.tries

    def tell(self, event: Event) -> None:
        """Pass on an event. If the listener fails, so does its request, and nothing else."""
        if self.on_event is None or self.answer.done():
            return
        try:
            self.on_event(event)
        except Exception as error:  # noqa: BLE001 – it reaches the listener's owner as `run`'s
            self.answer.set_exception(error)

    def settle(self, end: Generated | FalError) -> None:
        """Answer it, unless it has been answered or its caller is gone."""
        if self.answer.done():
            return
        if isinstance(end, Generated):
            self.answer.set_result(end)
        else:
            self.answer.set_exception(end)


def verdict(message: Generated | Failed | Cancelled) -> Generated | FalError:
    """What an engine's last word on a request means to its caller."""
    if isinstance(message, Generated):
        return message
    if isinstance(message, Cancelled):
        return RequestError("client_cancelled", "The request was cancelled.")
    if message.kind in INPUT_FAULTS:
        return invalid("image_url", message.kind, message.message, message.ctx)
    return RequestError("runner_server_error", message.message)


class Dispatcher:
    """The requests of a pool with these engines. Whatever changes calls for a `dispatch`."""

    def __init__(self, supervisors: Sequence[Supervisor]) -> None:
        self._assigned: dict[Supervisor, dict[str, PendingRequest]] = {supervisor: {} for supervisor in supervisors}
        self._queue = FairQueue[PendingRequest]()
        self._suspects = FairQueue[PendingRequest]()
        self._quarantine: Supervisor | None = None  # the engine that is kept for suspects

    @property
    def waiting(self) -> list[PendingRequest]:
        """Those that no engine has."""
        return [*self._queue, *self._suspects]

    @property
    def assigned(self) -> list[PendingRequest]:
        """Those that one has."""
        return [pending for assigned in self._assigned.values() for pending in assigned.values()]

    def count(self, supervisor: Supervisor) -> int:
        """How many an engine has."""
        return len(self._assigned[supervisor])

    def get(self, supervisor: Supervisor, request_id: str) -> PendingRequest | None:
        """What an engine has under this id."""
        return self._assigned[supervisor].get(request_id)

    def pop(self, supervisor: Supervisor, request_id: str) -> PendingRequest | None:
        """The same, which the engine has no longer."""
        pending = self._assigned[supervisor].pop(request_id, None)
        if pending is not None:
            pending.supervisor = None
        return pending

    def empty(self, supervisor: Supervisor) -> list[PendingRequest]:
        """All that an engine had in hand, for it is no more."""
        requests, self._assigned[supervisor] = list(self._assigned[supervisor].values()), {}
        if self._quarantine is supervisor:
            self._quarantine = None
        for pending in requests:
            pending.supervisor = None
        return requests

    def queue(self, pending: PendingRequest, *, suspect: bool = False) -> None:
        """Let it wait."""
        pending.queue = self._suspects if suspect else self._queue
        pending.queue.add(pending)

    def dispatch(self, now: float) -> None:
        """Send what waits to engines that have room for it."""
        self._send_suspect(now)
        while any(self._sent(pending, now) for pending in self._queue.heads(now)):
            pass

    def _sent(self, pending: PendingRequest, now: float) -> bool:
        """Send it where there is room. If there is none for the first in line, another may be below its share."""
        level = pending.priority.level(now - pending.arrived)
        supervisor = self._freest(level, pending.tenant)
        if supervisor is None:
            return False
        self._send(self._queue, pending, supervisor, level)
        return True

    def _send_suspect(self, now: float) -> None:
        """Run suspects one at a time on an engine that gets nothing else meanwhile: the first to be free of others."""
        ready = [supervisor for supervisor in self._assigned if supervisor.state is State.READY]
        if self._suspects and self._quarantine not in ready:
            self._quarantine = min(ready, key=self.count, default=None)
        if self._quarantine is None or self._assigned[self._quarantine]:
            return
        if self._suspects:
            self._send(self._suspects, self._suspects.first(now), self._quarantine, level=0)
        else:
            self._quarantine = None

    def _freest(self, level: int, tenant: str) -> Supervisor | None:
        """The least loaded engine with room for a request of this class and tenant."""
        free = [
            supervisor
            for supervisor in self._assigned
            if supervisor.state is State.READY
            and supervisor is not self._quarantine
            and self._has_room(supervisor, level, tenant)
        ]
        return min(
            free,
            key=lambda supervisor: sum(pending.cost for pending in self._assigned[supervisor].values()),
            default=None,
        )

    def _has_room(self, supervisor: Supervisor, level: int, tenant: str) -> bool:
        """Those less urgent don't count; one of a tenant that has less than an equal share goes on top."""
        assigned = self._assigned[supervisor].values()
        share = collections.Counter(pending.tenant for pending in assigned)
        allowed = fair_limit(supervisor.capacity, share[tenant], len({*share, tenant}))
        return sum(pending.level <= level for pending in assigned) < allowed

    def _send(
        self, queue: FairQueue[PendingRequest], pending: PendingRequest, supervisor: Supervisor, level: int
    ) -> None:
        queue.take(pending)
        pending.queue, pending.supervisor, pending.level = None, supervisor, level
        self._assigned[supervisor][pending.work.id] = pending
        supervisor.send(pending.work)

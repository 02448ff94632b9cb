"""Assigns pending requests to engine processes: fair order, per-engine capacity, suspects alone.

An engine is assigned no more requests than its capacity, so that the others can still be ordered here. Requests that
are more urgent than the assigned ones may exceed it: the engine takes them at its next step. A suspect is a request
whose engine died; suspects are run one at a time, on an engine that has nothing else.
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
from server.memory import end_if_exhausted
from server.workers.fair_queue import FairQueue
from server.workers.supervisor import State, Supervisor

Event: TypeAlias = Started | Log | Preview


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerunLimits:
    """The number of engines that may end while a request is assigned to them, before it is answered with an error.

    `solo_failures`: engines which had nothing else. `tries`: all.
    """

    solo_failures: int = 3
    tries: int = 10


RERUN_LIMITS = RerunLimits()


@dataclasses.dataclass(eq=False, slots=True)
class PendingRequest:
    """A request in the pool: either it waits in `queue`, or it is assigned to `supervisor`'s engine.

    `level`: its class of priority when it was sent. `tries`: engines that ended with it. `solo_failures`: those of them
    that had nothing else.
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
        """Return the work's priority."""
        return self.work.priority

    @property
    def tenant(self) -> str:
        """Return the caller that fairness counts it for."""
        return self.work.tenant

    @property
    def cost(self) -> int:
        """Return the number of images."""
        return self.work.params.num_images

    def exhausted(self, limits: RerunLimits) -> bool:
        """Return whether it may not be run again."""
        return self.solo_failures >= limits.solo_failures or self.tries >= limits.tries

    def tell(self, event: Event) -> None:
        """Pass an event to the listener. If the listener fails, so does its request, and nothing else."""
        if self.on_event is None or self.answer.done():
            return
        try:
            self.on_event(event)
        except Exception as error:  # noqa: BLE001 – it reaches the listener's owner as `run`'s
            end_if_exhausted(error)
            self.answer.set_exception(error)

    def settle(self, end: Generated | FalError) -> None:
        """Answer it, unless it is answered already or its caller is gone."""
        if self.answer.done():
            return
        if isinstance(end, Generated):
            self.answer.set_result(end)
        else:
            self.answer.set_exception(end)


def verdict(message: Generated | Failed | Cancelled) -> Generated | FalError:
    """Convert an engine's last message about a request to the caller's answer."""
    if isinstance(message, Generated):
        return message
    if isinstance(message, Cancelled):
        return RequestError("client_cancelled", "The request was cancelled.")
    if message.kind in INPUT_FAULTS:
        return invalid("image_url", message.kind, message.message, message.ctx)
    return RequestError("runner_server_error", message.message)


class Dispatcher:
    """The requests of a pool with these engines. Call `dispatch` after every change."""

    def __init__(self, supervisors: Sequence[Supervisor]) -> None:
        self._assigned: dict[Supervisor, dict[str, PendingRequest]] = {supervisor: {} for supervisor in supervisors}
        self._queue = FairQueue[PendingRequest]()
        self._suspects = FairQueue[PendingRequest]()
        self._quarantine: Supervisor | None = None  # its engine is reserved for suspects

    @property
    def waiting(self) -> list[PendingRequest]:
        """Return the requests that are assigned to no engine."""
        return [*self._queue, *self._suspects]

    @property
    def assigned(self) -> list[PendingRequest]:
        """Return the requests that are assigned to an engine."""
        return [pending for assigned in self._assigned.values() for pending in assigned.values()]

    def count(self, supervisor: Supervisor) -> int:
        """Return the number of requests that are assigned to an engine."""
        return len(self._assigned[supervisor])

    def get(self, supervisor: Supervisor, request_id: str) -> PendingRequest | None:
        """Return an engine's request of this id, None if it has none."""
        return self._assigned[supervisor].get(request_id)

    def pop(self, supervisor: Supervisor, request_id: str) -> PendingRequest | None:
        """Return an engine's request of this id and take it from the engine; None if it has none."""
        pending = self._assigned[supervisor].pop(request_id, None)
        if pending is not None:
            pending.supervisor = None
        return pending

    def empty(self, supervisor: Supervisor) -> list[PendingRequest]:
        """Return all requests of an engine that has ended, and take them from it."""
        requests, self._assigned[supervisor] = list(self._assigned[supervisor].values()), {}
        if self._quarantine is supervisor:
            self._quarantine = None
        for pending in requests:
            pending.supervisor = None
        return requests

    def queue(self, pending: PendingRequest, *, suspect: bool = False) -> None:
        """Add a request to those that wait; a suspect to those that are run alone."""
        pending.queue = self._suspects if suspect else self._queue
        pending.queue.add(pending)

    def dispatch(self, now: float) -> None:
        """Send waiting requests to engines that have room for them."""
        self._send_suspect(now)
        while any(self._sent(pending, now) for pending in self._queue.heads(now)):
            pass

    def _sent(self, pending: PendingRequest, now: float) -> bool:
        """Send a request to an engine with room; return whether there is one.

        Without room for the first of the queue there may be room for another, whose tenant is below its share.
        """
        level = pending.priority.level(now - pending.arrived)
        supervisor = self._freest(level, pending.tenant)
        if supervisor is None:
            return False
        self._send(self._queue, pending, supervisor, level)
        return True

    def _send_suspect(self, now: float) -> None:
        """Send the next suspect to the engine that is reserved for suspects, once that is idle.

        The ready engine with the fewest requests is reserved while there are suspects; it gets nothing else.
        """
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
        """Return the least loaded engine with room for a request of this class and tenant, None if there is none."""
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
        """Return whether the assigned requests at least as urgent are fewer than the tenant's `fair_limit`."""
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

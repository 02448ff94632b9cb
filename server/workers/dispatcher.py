"""Which engine has what in hand, who waits for one, and who gets what next.

An engine gets no more than it wants in hand, so that what waits can still be put in order here; only requests more
urgent than those in hand may come on top (the engine takes them at its next step). Suspects, whose engine died while it
had others in hand too, are run one at a time on an engine that has nothing else.
"""

import collections
from collections.abc import Sequence

from server.workers.fair_queue import FairQueue
from server.workers.supervisor import State, Supervisor
from server.workers.ticket import PendingRequest


class Dispatcher:
    """The requests of a pool with these engines. Whatever changes calls for a `dispatch`."""

    def __init__(self, supervisors: Sequence[Supervisor]) -> None:
        self._assigned: dict[Supervisor, dict[str, PendingRequest]] = {supervisor: {} for supervisor in supervisors}
        self._line = FairQueue[PendingRequest]()
        self._suspects = FairQueue[PendingRequest]()
        self._quarantine: Supervisor | None = None  # the engine that is kept for suspects

    @property
    def waiting(self) -> list[PendingRequest]:
        """Those that no engine has."""
        return [*self._line, *self._suspects]

    @property
    def held(self) -> list[PendingRequest]:
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
        pending.line = self._suspects if suspect else self._line
        pending.line.add(pending)

    def dispatch(self, now: float) -> None:
        """Send what waits to engines that have room for it."""
        self._send_suspect(now)
        while any(self._sent(pending, now) for pending in self._line.heads(now)):
            pass

    def _sent(self, pending: PendingRequest, now: float) -> bool:
        """Send it where there is room. If there is none for the first in line, another may be below its share."""
        level = pending.priority.level(now - pending.arrived)
        supervisor = self._freest(level, pending.tenant)
        if supervisor is None:
            return False
        self._send(self._line, pending, supervisor, level)
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
        part = supervisor.capacity // len({*share, tenant})
        allowed = 2 * supervisor.capacity if share[tenant] < part else supervisor.capacity
        return sum(pending.level <= level for pending in assigned) < allowed

    def _send(
        self, line: FairQueue[PendingRequest], pending: PendingRequest, supervisor: Supervisor, level: int
    ) -> None:
        line.take(pending)
        pending.line, pending.supervisor, pending.level = None, supervisor, level
        self._assigned[supervisor][pending.work.id] = pending
        supervisor.send(pending.work)

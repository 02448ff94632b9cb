"""Assigns pending requests to engine processes: fair order, per-engine capacity, suspects alone.

An engine is assigned no more requests than its capacity, so that the others can still be ordered here. Requests that
are more urgent than the assigned ones may exceed it: the engine takes them at its next step. A suspect is a request
whose engine died, unless a decoder process had its picture; suspects are run one at a time, on an engine that has
nothing else.

A request whose picture is large (by its file's size, or as an engine has said that gave it back) waits here for a
decoder, in an order by the tenants' seconds of decoding. It takes none of the engine's capacity until its picture is
decoded.
"""

import collections
from collections.abc import Sequence

from pipelines.messages import Decoded, Large, Priority, fair_limit
from server.workers.fair_queue import FairQueue
from server.workers.pending import PendingRequest
from server.workers.supervisor import State, Supervisor


class Dispatcher:
    """The requests of a pool with these engines. Call `dispatch` after every change."""

    def __init__(self, supervisors: Sequence[Supervisor]) -> None:
        self._assigned: dict[Supervisor, dict[str, PendingRequest]] = {supervisor: {} for supervisor in supervisors}
        self._queue = FairQueue[PendingRequest]()
        self._large = FairQueue[PendingRequest](cost=lambda _: 0.0)  # what it takes is charged afterwards
        self._suspects = FairQueue[PendingRequest]()
        self._quarantine: Supervisor | None = None  # its engine is reserved for suspects

    @property
    def waiting(self) -> list[PendingRequest]:
        """Return the requests that are assigned to no engine."""
        return [*self._queue, *self._large, *self._suspects]

    @property
    def assigned(self) -> list[PendingRequest]:
        """Return the requests that are assigned to an engine."""
        return [pending for assigned in self._assigned.values() for pending in assigned.values()]

    @property
    def calls(self) -> int:
        """Return the number of requests that are no jobs and take capacity, or wait for it."""
        requests = (*self.assigned, *self.waiting)
        return sum(pending.priority <= Priority.RUN and not pending.decoding for pending in requests)

    def count(self, supervisor: Supervisor) -> int:
        """Return the number of requests that are assigned to an engine."""
        return len(self._assigned[supervisor])

    def load(self, supervisor: Supervisor) -> list[PendingRequest]:
        """Return the requests that take an engine's capacity."""
        return [pending for pending in self._assigned[supervisor].values() if not pending.decoding]

    def get(self, supervisor: Supervisor, request_id: str) -> PendingRequest | None:
        """Return an engine's request of this id, None if it has none."""
        return self._assigned[supervisor].get(request_id)

    def pop(self, supervisor: Supervisor, request_id: str, now: float) -> PendingRequest | None:
        """Return an engine's request of this id and take it from the engine; None if it has none."""
        pending = self._assigned[supervisor].pop(request_id, None)
        if pending is not None:
            pending.supervisor = None
            self._end_decoding(pending, now)
        return pending

    def give_back(self, supervisor: Supervisor, message: Large, now: float) -> PendingRequest | None:
        """Return an engine's request whose picture is large, taken from the engine; None if it has none.

        From now on it is sent to a decoder.
        """
        pending = self.pop(supervisor, message.id, now)
        if pending is not None:
            pending.note_large(message)
        return pending

    def note_decoded(self, supervisor: Supervisor, message: Decoded, now: float) -> None:
        """Note that a request's large picture is decoded: the decoder is free, and the request takes capacity."""
        pending = self.get(supervisor, message.id)
        if pending is not None:
            self._end_decoding(pending, now)
            pending.tell(message)

    def empty(self, supervisor: Supervisor, now: float) -> list[PendingRequest]:
        """Return all requests of an engine that has ended, and take them from it.

        They are suspects of its end, but for those whose picture a decoder process had.
        """
        requests, self._assigned[supervisor] = list(self._assigned[supervisor].values()), {}
        suspects = [pending for pending in requests if not pending.decoding]
        for pending in suspects:
            pending.suspect = True
            pending.solo_failures += len(suspects) == 1
        for pending in requests:
            pending.tries += 1
            pending.supervisor = None
            self._end_decoding(pending, now)
        return requests

    def queue(self, pending: PendingRequest) -> None:
        """Add a request to those that wait; a suspect to those that are run alone."""
        pending.queue = self._suspects if pending.suspect else self._large if pending.large else self._queue
        pending.queue.add(pending)

    def dispatch(self, now: float) -> None:
        """Send waiting requests to engines that have room for them."""
        self._send_suspect(now)
        for queue in (self._large, self._queue):
            while any(self._sent(queue, pending, now) for pending in queue.heads(now)):
                pass

    def _sent(self, queue: FairQueue[PendingRequest], pending: PendingRequest, now: float) -> bool:
        """Send a request to an engine with room; return whether there is one.

        Without room for the first of the queue there may be room for another, whose tenant is below its share.
        """
        level = pending.priority.level(now - pending.arrived)
        supervisor = self._freest(pending, level)
        if supervisor is None:
            return False
        self._send(queue, pending, supervisor, level, now)
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
            self._send(self._suspects, self._suspects.first(now), self._quarantine, 0, now)
        else:
            self._quarantine = None

    def _freest(self, pending: PendingRequest, level: int) -> Supervisor | None:
        """Return the least loaded engine with room for a request, which is of this class now; None if there is none."""
        free = [
            supervisor
            for supervisor in self._assigned
            if supervisor.state is State.READY
            and supervisor is not self._quarantine
            and self._has_room(supervisor, level, pending)
            and (not pending.large or self._has_decoder(supervisor, pending))
        ]
        return min(
            free,
            key=lambda supervisor: sum(other.cost for other in self._assigned[supervisor].values()),
            default=None,
        )

    def _has_room(self, supervisor: Supervisor, level: int, pending: PendingRequest) -> bool:
        """Return whether the assigned requests at least as urgent are fewer than the tenant's `fair_limit`.

        Before a large picture those that are being decoded count too, because they are going to take capacity.
        """
        assigned = self._assigned[supervisor].values() if pending.large else self.load(supervisor)
        share = collections.Counter(other.tenant for other in assigned)
        allowed = fair_limit(supervisor.capacity, share[pending.tenant], len({*share, pending.tenant}))
        return sum(other.level <= level for other in assigned) < allowed

    def _end_decoding(self, pending: PendingRequest, now: float) -> None:
        """Count the time that a decoder had a request's picture, if one did until now."""
        if pending.decoding:
            pending.decoding = False
            self._large.charge(pending.tenant, now - pending.sent)

    def _has_decoder(self, supervisor: Supervisor, pending: PendingRequest) -> bool:
        """Return whether the engine may decode a large picture now, with memory for it if it is to be decoded alone.

        The engines are on one machine: those of all together keep no more than half of its processors busy. A tenant
        gets none while another waits that has fewer.
        """
        decoding = [other for other in self.assigned if other.decoding]
        crowded = len(decoding) >= max(1, supervisor.processors // 2) or (
            pending.alone and any(other.alone for other in decoding)
        )
        own = sum(other.supervisor is supervisor for other in decoding)
        held = collections.Counter(other.tenant for other in decoding)
        fewest = min(held[tenant] for tenant in self._large.tenants)
        return own < supervisor.decoders and not crowded and held[pending.tenant] <= fewest

    def _send(
        self, queue: FairQueue[PendingRequest], pending: PendingRequest, supervisor: Supervisor, level: int, now: float
    ) -> None:
        queue.take(pending)
        pending.queue, pending.supervisor, pending.level = None, supervisor, level
        pending.decoding, pending.sent = pending.large, now
        self._assigned[supervisor][pending.work.id] = pending
        supervisor.send(pending.work)

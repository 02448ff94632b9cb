"""Which engine has what in hand, who waits for one, and who gets what next.

An engine gets no more than it wants in hand, so that what waits can still be put in order here; only requests more
urgent than those in hand may come on top (the engine takes them at its next step). Suspects, whose engine died while it
had others in hand too, are run one at a time on an engine that has nothing else.
"""

import collections
from collections.abc import Sequence

from server.workers.fair_queue import Line
from server.workers.supervisor import Slot, State
from server.workers.ticket import Ticket


class Hands:
    """The requests of a pool with these engines. Whatever changes calls for a `dispatch`."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._hands: dict[Slot, dict[str, Ticket]] = {slot: {} for slot in slots}
        self._line = Line[Ticket]()
        self._suspects = Line[Ticket]()
        self._ward: Slot | None = None  # the engine that is kept for suspects

    @property
    def waiting(self) -> list[Ticket]:
        """Those that no engine has."""
        return [*self._line, *self._suspects]

    @property
    def held(self) -> list[Ticket]:
        """Those that one has."""
        return [ticket for hand in self._hands.values() for ticket in hand.values()]

    def count(self, slot: Slot) -> int:
        """How many an engine has."""
        return len(self._hands[slot])

    def get(self, slot: Slot, request_id: str) -> Ticket | None:
        """What an engine has under this id."""
        return self._hands[slot].get(request_id)

    def pop(self, slot: Slot, request_id: str) -> Ticket | None:
        """The same, which the engine has no longer."""
        ticket = self._hands[slot].pop(request_id, None)
        if ticket is not None:
            ticket.slot = None
        return ticket

    def empty(self, slot: Slot) -> list[Ticket]:
        """All that an engine had in hand, for it is no more."""
        tickets, self._hands[slot] = list(self._hands[slot].values()), {}
        if self._ward is slot:
            self._ward = None
        for ticket in tickets:
            ticket.slot = None
        return tickets

    def queue(self, ticket: Ticket, *, suspect: bool = False) -> None:
        """Let it wait."""
        ticket.line = self._suspects if suspect else self._line
        ticket.line.add(ticket)

    def dispatch(self, now: float) -> None:
        """Send what waits to engines that have room for it."""
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
        ready = [slot for slot in self._hands if slot.state is State.READY]
        if self._suspects and self._ward not in ready:
            self._ward = min(ready, key=self.count, default=None)
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
            for slot in self._hands
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

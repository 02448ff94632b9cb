"""Who waits for an engine, and who goes next. Pure: the time comes in as an argument.

Order: the class of the priority after the time waited (so nobody starves), then the tenant that has had least, then who
came first. Realtime and run are one class between tenants, so that nobody's flood of frames holds up another's calls;
within a tenant realtime goes first. What a tenant has had is counted in images since it last had nothing to wait for:
one that comes with a thousand requests gets its share beside one that comes with one, and nobody saves up by staying
away.
(Start-time fair queueing: Goyal, Vin, Cheng, 1996.)
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from pipelines.messages import Priority


class Waiting(Protocol):
    """What the line looks at. `arrived`: seconds on the clock that `now` is read from; `cost`: images."""

    @property
    def priority(self) -> Priority: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrived(self) -> float: ...
    @property
    def cost(self) -> int: ...


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """Requests that wait. Costs nothing per request that waits, only per tenant and class."""

    def __init__(self) -> None:
        self._queues: dict[tuple[Priority, str], deque[T]] = {}
        self._had: dict[str, float] = {}
        self._clock = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self._queues.values())

    def add(self, item: T) -> None:
        """Stand in line: at the end, or in front for one that has been here before."""
        queue = self._queues.setdefault((item.priority, item.tenant), deque())
        if queue and item.arrived < queue[0].arrived:
            queue.appendleft(item)
        else:
            queue.append(item)

    def first(self, now: float) -> T:
        """Who goes next. The line must not be empty."""
        return self.heads(now)[0]

    def heads(self, now: float) -> list[T]:
        """The first of each tenant and priority, in the order in which they go."""
        return sorted((queue[0] for queue in self._queues.values()), key=lambda item: self._rank(item, now))

    def remove(self, item: T) -> None:
        """Leave the line without having gone. Raises `ValueError` for one who is not in it."""
        key = (item.priority, item.tenant)
        queue = self._queues.get(key, deque[T]())
        queue.remove(item)
        if not queue:
            del self._queues[key]

    def take(self, item: T) -> None:
        """Leave the line to go: counted for its tenant."""
        self.remove(item)
        self._clock = self._share(item)
        self._had[item.tenant] = self._clock + item.cost
        if not self._queues:
            self._had.clear()

    def _rank(self, item: T, now: float) -> tuple[int, float, int, float]:
        level = item.priority.level(now - item.arrived)
        return Priority.between_tenants(level), self._share(item), level, item.arrived

    def _share(self, item: T) -> float:
        return max(self._clock, self._had.get(item.tenant, 0.0))

"""Queue of requests that wait for an engine, in fair order. Pure: the time is an argument.

Order: the priority's class after the time waited (so no request starves), then the tenant with the fewest images
served, then the earliest arrival. Between tenants realtime and run are one class, so that one tenant's flood of frames
does not hold up another's calls; within a tenant realtime goes first.

A tenant's images are counted since it last had no request waiting. So a tenant with a thousand requests gets an equal
share beside a tenant with one, and an absent tenant saves nothing up (start-time fair queueing: Goyal, Vin, Cheng,
1996).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from pipelines.messages import Priority


class Waiting(Protocol):
    """A request, as the queue sees it. `arrived`: seconds on the clock of `now`. `cost`: images."""

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
    """Waiting requests in fair order. Finding the next takes time per tenant and priority, not per request."""

    def __init__(self, cost: Callable[[T], float] = lambda item: item.cost) -> None:
        self._cost = cost
        self._queues: dict[tuple[Priority, str], deque[T]] = {}
        self._served: dict[str, float] = {}
        self._clock = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self._queues.values())

    @property
    def tenants(self) -> set[str]:
        """Return the tenants that have a request in the queue."""
        return {tenant for _, tenant in self._queues}

    def add(self, item: T) -> None:
        """Append a request to those of its tenant and priority; one older than all of them goes to the front."""
        queue = self._queues.setdefault((item.priority, item.tenant), deque())
        if queue and item.arrived < queue[0].arrived:
            queue.appendleft(item)
        else:
            queue.append(item)

    def first(self, now: float) -> T:
        """Return the request that goes next. The queue must not be empty."""
        return self.heads(now)[0]

    def heads(self, now: float) -> list[T]:
        """Return the first request of each tenant and priority, in the order in which they go."""
        return sorted((queue[0] for queue in self._queues.values()), key=lambda item: self._rank(item, now))

    def remove(self, item: T) -> None:
        """Remove a request that is not served. Raises `ValueError` if it is not in the queue."""
        key = (item.priority, item.tenant)
        queue = self._queues.get(key, deque[T]())
        queue.remove(item)
        if not queue:
            del self._queues[key]

    def take(self, item: T) -> None:
        """Remove a request that is served, and count its images for its tenant."""
        self.remove(item)
        self._clock = self._share(item)
        self._served[item.tenant] = self._clock + self._cost(item)
        if not self._queues:
            self._served.clear()

    def charge(self, tenant: str, cost: float) -> None:
        """Count more for a tenant, where the cost of what it was served with is known only afterwards."""
        self._served[tenant] = max(self._clock, self._served.get(tenant, 0.0)) + cost

    def _rank(self, item: T, now: float) -> tuple[int, float, int, float]:
        level = item.priority.level(now - item.arrived)
        return Priority.between_tenants(level), self._share(item), level, item.arrived

    def _share(self, item: T) -> float:
        return max(self._clock, self._served.get(item.tenant, 0.0))

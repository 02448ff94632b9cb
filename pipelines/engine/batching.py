"""Who goes next on the device. Pure policy: no torch, no threads, and the time comes in as an argument.

A request in hand is `waiting` (decoded, not yet on the device) or `active` (its images stand between two steps). The
loop asks two questions each time round, and there is no third: nobody waits for a batch to fill.

    admissible    which waiting requests join the device now
    next_step     which images share the next UNet call

Urgency is one order for both: the class of the priority after the time waited, then the tenant that has least of the
device, then who came first. Realtime and run are one class between tenants (nobody's flood of frames holds up another's
calls); within a tenant realtime goes first. A device is full only of those at least as urgent: a realtime frame joins
one that is full of background work and takes the next step, and the background work goes on after it. Nor is it full
for a tenant that has less than an equal share of it: steps are shared evenly, and who has more sits some of them out.
Less urgent images of the same size ride along where the step has room, because a fuller UNet call costs less per row.
"""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipelines.messages import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence


class Candidate(Protocol):
    """What the policy looks at. `arrived`: monotonic seconds. `rows`: UNet rows that it adds to a step."""

    @property
    def priority(self) -> Priority: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrived(self) -> float: ...
    @property
    def rows(self) -> int: ...


class Sized(Candidate, Protocol):
    """A candidate whose size is known: only equal `shape`s share a call."""

    @property
    def shape(self) -> Hashable: ...


C = TypeVar("C", bound=Candidate)
S = TypeVar("S", bound=Sized)
T = TypeVar("T")


def level(candidate: Candidate, now: float) -> int:
    """The candidate's class at `now`, 0 the most urgent."""
    return candidate.priority.level(now - candidate.arrived)


def between_tenants(level: int) -> int:
    """The class that counts before whose request it is."""
    return max(level, Priority.RUN)


def admissible(waiting: Sequence[C], active: Iterable[C], limit: int, now: float) -> list[C]:
    """The waiting requests that join now, most urgent first; among equals the tenant with least on the device.

    Each joins while the rows that are at least as urgent as it are fewer than `limit`, or than twice that while its
    tenant has less than an equal part. So a request of many rows overshoots a little instead of waiting for an empty
    device that may never come.
    """
    aboard = [(level(request, now), request) for request in active]
    share = Counter[str]()
    for _, request in aboard:
        share[request.tenant] += request.rows
    rest, chosen = list(waiting), []
    part = limit // len({*share, *(request.tenant for request in waiting)} or {""})

    def rank(request: C) -> tuple[int, int, int, float]:
        urgency = level(request, now)
        return between_tenants(urgency), share[request.tenant], urgency, request.arrived

    while rest:
        best = min(rest, key=rank)
        urgency = level(best, now)
        allowed = 2 * limit if share[best.tenant] < part else limit
        if sum(request.rows for other, request in aboard if other <= urgency) >= allowed:
            break  # nobody goes past one whose turn it is
        rest.remove(best)
        chosen.append(best)
        aboard.append((urgency, best))
        share[best.tenant] += best.rows
    return chosen


def next_step(images: Iterable[S], limit: Callable[[Hashable], int], now: float) -> list[S]:
    """The images that share the next UNet call: the most urgent one, then others of its shape by urgency.

    Tenants take turns, each with its most urgent image first. `limit(shape)` bounds the rows; the first one goes
    however many rows it has. Empty only when `images` is.
    """
    turns = Counter[str]()
    ranked = []
    for image in sorted(images, key=lambda image: (level(image, now), image.arrived)):
        urgency = level(image, now)
        ranked.append(((between_tenants(urgency), turns[image.tenant], urgency, image.arrived), image))
        turns[image.tenant] += 1
    ordered = [image for _, image in sorted(ranked, key=itemgetter(0))]
    if not ordered:
        return []
    first = ordered[0]
    room = max(limit(first.shape), first.rows)
    batch = []
    for image in ordered:
        if image.shape == first.shape and image.rows <= room:
            batch.append(image)
            room -= image.rows
    return batch


def by_shape(images: Iterable[S]) -> list[list[S]]:
    """The images in groups of one shape each, in the order in which the shapes first come."""
    groups: dict[Hashable, list[S]] = {}
    for image in images:
        groups.setdefault(image.shape, []).append(image)
    return list(groups.values())


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

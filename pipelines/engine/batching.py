"""Policy of what runs next on the device. Pure functions: no torch, no threads, the time is an argument.

An unfinished request is `waiting` (decoded, not yet on the device) or `active` (its images are between two steps). The
loop asks two questions in each pass; no request waits for a batch to fill.

    admissible    which waiting requests join the device now
    next_step     which images share the next UNet call

Both use one order of urgency: the priority's class after the time waited, then the tenant with the fewest rows on the
device, then the earliest arrival. Between tenants realtime and run are one class, so that one tenant's flood of frames
does not hold up another's calls; within a tenant realtime goes first.

For a request the device is full of the requests that are at least as urgent. So a realtime frame joins a device that is
full of background work and takes the next step; the background work goes on after it. The device is not full for a
tenant with less than an equal share: steps are shared evenly, and tenants with more rows sit some of them out. Less
urgent images of the same size share a step that has room, because a fuller UNet call costs less per row.
"""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipelines.messages import Priority, fair_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence


class Candidate(Protocol):
    """A request or image, as the policy sees it. `arrived`: monotonic seconds. `rows`: UNet rows it adds to a step."""

    @property
    def priority(self) -> Priority: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrived(self) -> float: ...
    @property
    def rows(self) -> int: ...


class Sized(Candidate, Protocol):
    """A candidate of known size: only equal `shape`s share a call."""

    @property
    def shape(self) -> Hashable: ...


C = TypeVar("C", bound=Candidate)
S = TypeVar("S", bound=Sized)
T = TypeVar("T")


def level(candidate: Candidate, now: float) -> int:
    """Return the candidate's class at `now`; 0 is the most urgent."""
    return candidate.priority.level(now - candidate.arrived)


def admissible(waiting: Sequence[C], active: Iterable[C], limit: int, now: float) -> list[C]:
    """Return the waiting requests that join now, most urgent first; among equals, of the tenant with fewest rows first.

    A request joins while the rows at least as urgent as it are fewer than its tenant's `fair_limit`. So a request of
    many rows overshoots a little instead of waiting for an empty device, which may never come.
    """
    on_device = [(level(request, now), request) for request in active]
    share = Counter[str]()
    for _, request in on_device:
        share[request.tenant] += request.rows
    rest, chosen = list(waiting), []
    tenants = len({*share, *(request.tenant for request in waiting)})

    def rank(request: C) -> tuple[int, int, int, float]:
        urgency = level(request, now)
        return Priority.between_tenants(urgency), share[request.tenant], urgency, request.arrived

    while rest:
        best = min(rest, key=rank)
        urgency = level(best, now)
        allowed = fair_limit(limit, share[best.tenant], tenants)
        if sum(request.rows for other, request in on_device if other <= urgency) >= allowed:
            break  # no request overtakes the one whose turn it is
        rest.remove(best)
        chosen.append(best)
        on_device.append((urgency, best))
        share[best.tenant] += best.rows
    return chosen


def next_step(images: Iterable[S], limit: Callable[[Any], int], now: float) -> list[S]:
    """Return the images that share the next UNet call: the most urgent one, then others of its shape by urgency.

    Tenants take turns, each with its most urgent image first. `limit(shape)` bounds the rows, but the first image goes
    whatever its rows. Empty only if `images` is.
    """
    turns = Counter[str]()
    ranked = []
    for image in sorted(images, key=lambda image: (level(image, now), image.arrived)):
        urgency = level(image, now)
        ranked.append(((Priority.between_tenants(urgency), turns[image.tenant], urgency, image.arrived), image))
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
    """Group images by shape, in the order in which the shapes first occur."""
    groups: dict[Hashable, list[S]] = {}
    for image in images:
        groups.setdefault(image.shape, []).append(image)
    return list(groups.values())


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut items, in order, into parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

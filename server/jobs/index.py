"""What the queue knows without asking the disk: every unfinished job, who is before whom, and the last finished ones.

The database is the truth; the board follows each commit. It answers a poll every 100 ms from every client, the queue
positions, and who wants to be woken when a job changes.
"""

import asyncio
import bisect
import collections
import itertools
from collections.abc import Callable, Collection, Iterable

import msgspec

from pipelines.messages import Priority
from server.jobs.job import LogLine, Result, Snapshot, Status

FINISHED = 4096  # snapshots of finished jobs kept at hand, a kilobyte or so each


class JobIndex:
    """Unfinished jobs and the last `keep` finished ones. Lives on the event loop; never waits."""

    def __init__(self, keep: int = FINISHED) -> None:
        self._keep = keep
        self._jobs: dict[str, Snapshot] = {}
        self._finished: collections.OrderedDict[str, Snapshot] = collections.OrderedDict()
        self._lines: dict[Priority, list[int]] = {priority: [] for priority in Priority}  # waiting seqs, ascending
        self._owned: collections.Counter[str] = collections.Counter()  # waiting jobs by owner
        self._deadlines: list[tuple[float, str]] = []  # (start_by, request id) of waiting jobs, ascending
        self._watchers: dict[str, set[asyncio.Event]] = collections.defaultdict(set)
        self._moved = False

    @property
    def waiting(self) -> int:
        """Jobs that nobody has started."""
        return sum(map(len, self._lines.values()))

    def owned(self, owner: str) -> int:
        """Those of one owner."""
        return self._owned[owner]

    def others_than(self, owners: Collection[str]) -> bool:
        """Whether a job of anybody else waits."""
        return any(owner not in owners for owner in self._owned)

    def get(self, request_id: str) -> Snapshot | None:
        """The snapshot with its place in the queue; None if the board does not have it (the database may)."""
        snapshot = self._jobs.get(request_id)
        if snapshot is None:
            return self._finished.get(request_id)
        if snapshot.status is not Status.IN_QUEUE:
            return snapshot
        return msgspec.structs.replace(snapshot, queue_position=self._position(snapshot))

    def _position(self, snapshot: Snapshot) -> int:
        ahead = sum(len(line) for priority, line in self._lines.items() if priority < snapshot.priority)
        return ahead + bisect.bisect_left(self._lines[snapshot.priority], snapshot.seq)

    # --- following the database

    def add(self, snapshot: Snapshot) -> None:
        """A job was accepted."""
        if snapshot.completed:
            self._remember(snapshot)
            return
        self._jobs[snapshot.id] = snapshot
        self._enqueue(snapshot)

    def started(self, request_id: str) -> None:
        """A worker has taken it."""
        self._move(request_id, Snapshot.started)

    def requeued(self, request_id: str) -> None:
        """It waits again, at its old place."""
        self._move(request_id, Snapshot.requeued)

    def logged(self, request_id: str, line: LogLine) -> None:
        """One more line of a running job."""
        snapshot = self._jobs.get(request_id)
        if snapshot is not None:
            self._jobs[request_id] = snapshot.logged(line)
            self._wake(request_id)

    def finished(self, request_id: str, result: Result, inference_time: float = 0.0) -> None:
        """It is answered."""
        snapshot = self._jobs.pop(request_id, None)
        if snapshot is not None:
            self._dequeue(snapshot)
            self._remember(snapshot.finished(result, inference_time))
            self._wake(request_id)

    def forget(self, request_ids: Iterable[str]) -> None:
        """The database knows better than the board of these finished jobs."""
        for request_id in request_ids:
            self._finished.pop(request_id, None)

    def _move(self, request_id: str, move: Callable[[Snapshot], Snapshot]) -> None:
        snapshot = self._jobs.get(request_id)
        if snapshot is None:
            return
        self._dequeue(snapshot)
        moved = self._jobs[request_id] = move(snapshot)
        if moved.status is Status.IN_QUEUE:
            self._enqueue(moved)
        self._wake(request_id)

    def _enqueue(self, snapshot: Snapshot) -> None:
        bisect.insort(self._lines[snapshot.priority], snapshot.seq)
        self._owned[snapshot.owner] += 1
        self._moved = True
        if snapshot.start_by is not None:
            bisect.insort(self._deadlines, (snapshot.start_by, snapshot.id))

    def _dequeue(self, snapshot: Snapshot) -> None:
        line = self._lines[snapshot.priority]
        place = bisect.bisect_left(line, snapshot.seq)
        if snapshot.status is Status.IN_QUEUE and place < len(line) and line[place] == snapshot.seq:
            del line[place]
            self._owned[snapshot.owner] -= 1
            if not self._owned[snapshot.owner]:
                del self._owned[snapshot.owner]
            self._moved = True
            if snapshot.start_by is not None:
                del self._deadlines[bisect.bisect_left(self._deadlines, (snapshot.start_by, snapshot.id))]

    def _remember(self, snapshot: Snapshot) -> None:
        self._finished[snapshot.id] = snapshot
        if len(self._finished) > self._keep:
            self._finished.popitem(last=False)

    # --- start timeouts

    def overdue(self, now: float) -> list[str]:
        """The waiting jobs whose start timeout has run out, until they are followed to their end."""
        late = itertools.takewhile(lambda deadline: deadline[0] <= now, self._deadlines)
        return [request_id for _, request_id in late]

    # --- watching

    def watch(self, request_id: str, changed: asyncio.Event) -> None:
        """`changed` is set whenever the job changes."""
        self._watchers[request_id].add(changed)

    def unwatch(self, request_id: str, changed: asyncio.Event) -> None:
        """Ends a `watch`."""
        watchers = self._watchers[request_id]
        watchers.discard(changed)
        if not watchers:
            del self._watchers[request_id]

    def wake_waiting(self) -> None:
        """Wakes those who watch a waiting job, if any place has changed since the last call. For a timer: a claim moves
        thousands of places, and nobody reads them that often."""
        if not self._moved:
            return
        self._moved = False
        for request_id in self._watchers:
            if request_id in self._jobs and self._jobs[request_id].status is Status.IN_QUEUE:
                self._wake(request_id)

    def wake_all(self) -> None:
        """Wakes every watcher: the queue is closing."""
        for request_id in self._watchers:
            self._wake(request_id)

    def _wake(self, request_id: str) -> None:
        for changed in self._watchers.get(request_id, ()):
            changed.set()

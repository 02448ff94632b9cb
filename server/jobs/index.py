"""In-memory index of jobs: every unfinished one with its queue position, and the last finished ones.

The database is the truth; the index follows each commit. It answers each client's poll (every 100 ms) without reading
the disk, counts what waits, finds overdue start timeouts, and wakes the watchers of a job when that changes.
"""

import asyncio
import bisect
import collections
import itertools
from collections.abc import Callable, Collection, Iterable

import msgspec

from pipelines.messages import Priority
from server.jobs.job import LogLine, Result, Snapshot, Status

FINISHED = 4096  # snapshots of finished jobs kept in memory, about a kilobyte each


class JobIndex:
    """Unfinished jobs and the last `keep` finished ones. To be used on the event loop; never waits."""

    def __init__(self, keep: int = FINISHED) -> None:
        self._keep = keep
        self._jobs: dict[str, Snapshot] = {}
        self._finished: collections.OrderedDict[str, Snapshot] = collections.OrderedDict()
        self._seqs: dict[Priority, list[int]] = {priority: [] for priority in Priority}  # waiting seqs, ascending
        self._owned: collections.Counter[str] = collections.Counter()  # waiting jobs by owner
        self._deadlines: list[tuple[float, str]] = []  # (start_by, request id) of waiting jobs, ascending
        self._watchers: dict[str, set[asyncio.Event]] = collections.defaultdict(set)
        self._submitting: collections.Counter[str] = collections.Counter()  # jobs on their way to the disk, by owner
        self._moved = False
        self.webhook_due = asyncio.Event()  # set when a job with a webhook has ended

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a worker, with those on their way to the disk."""
        return sum(map(len, self._seqs.values())) + self._submitting.total()

    def owned(self, owner: str) -> int:
        """Return the number of waiting jobs of one owner."""
        return self._owned[owner] + self._submitting[owner]

    def others_than(self, owners: Collection[str]) -> bool:
        """Return whether a stored job of another owner waits."""
        return any(owner not in owners for owner in self._owned)

    def get(self, request_id: str) -> Snapshot | None:
        """Return the snapshot with its queue position; None if it is not here (the database may have it)."""
        snapshot = self._jobs.get(request_id)
        if snapshot is None:
            return self._finished.get(request_id)
        if snapshot.status is not Status.IN_QUEUE:
            return snapshot
        return msgspec.structs.replace(snapshot, queue_position=self._position(snapshot))

    def _position(self, snapshot: Snapshot) -> int:
        ahead = sum(len(seqs) for priority, seqs in self._seqs.items() if priority < snapshot.priority)
        return ahead + bisect.bisect_left(self._seqs[snapshot.priority], snapshot.seq)

    # --- following the database

    def submitting(self, owner: str) -> None:
        """Count a job that is on its way to the disk, until `submitted`."""
        self._submitting[owner] += 1

    def submitted(self, owner: str) -> None:
        """Count one job less on its way to the disk: it is stored, or could not be."""
        self._submitting[owner] -= 1
        if not self._submitting[owner]:
            del self._submitting[owner]

    def add(self, snapshot: Snapshot) -> None:
        """Follow the acceptance of a job."""
        if snapshot.completed:
            self._remember(snapshot)
            return
        self._jobs[snapshot.id] = snapshot
        self._enqueue(snapshot)

    def started(self, request_id: str) -> None:
        """Follow a claim: a worker runs the job."""
        self._move(request_id, Snapshot.started)

    def requeued(self, request_id: str) -> None:
        """Follow a release: the job waits again, at its old place."""
        self._move(request_id, Snapshot.requeued)

    def logged(self, request_id: str, line: LogLine) -> None:
        """Add a log line to a running job."""
        snapshot = self._jobs.get(request_id)
        if snapshot is not None:
            self._jobs[request_id] = snapshot.logged(line)
            self._wake(request_id)

    def finished(self, request_id: str, result: Result, inference_time: float = 0.0) -> None:
        """Follow a job to its end; `inference_time` in seconds."""
        snapshot = self._jobs.pop(request_id, None)
        if snapshot is not None:
            self._dequeue(snapshot)
            self._remember(snapshot.finished(result, inference_time))
            self._wake(request_id)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop these finished jobs, which the database has changed."""
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
        bisect.insort(self._seqs[snapshot.priority], snapshot.seq)
        self._owned[snapshot.owner] += 1
        self._moved = True
        if snapshot.start_by is not None:
            bisect.insort(self._deadlines, (snapshot.start_by, snapshot.id))

    def _dequeue(self, snapshot: Snapshot) -> None:
        seqs = self._seqs[snapshot.priority]
        place = bisect.bisect_left(seqs, snapshot.seq)
        if snapshot.status is Status.IN_QUEUE and place < len(seqs) and seqs[place] == snapshot.seq:
            del seqs[place]
            self._owned[snapshot.owner] -= 1
            if not self._owned[snapshot.owner]:
                del self._owned[snapshot.owner]
            self._moved = True
            if snapshot.start_by is not None:
                del self._deadlines[bisect.bisect_left(self._deadlines, (snapshot.start_by, snapshot.id))]

    def _remember(self, snapshot: Snapshot) -> None:
        self._finished[snapshot.id] = snapshot
        if snapshot.webhook is not None:
            self.webhook_due.set()
        if len(self._finished) > self._keep:
            self._finished.popitem(last=False)

    # --- start timeouts

    def overdue(self, now: float) -> list[str]:
        """Return the ids of waiting jobs whose start timeout has run out."""
        late = itertools.takewhile(lambda deadline: deadline[0] <= now, self._deadlines)
        return [request_id for _, request_id in late]

    def move_deadlines(self, seconds: float) -> None:
        """Move every start timeout: the machine's clock was set."""
        for request_id, snapshot in self._jobs.items():
            if snapshot.start_by is not None:
                moved = msgspec.structs.replace(snapshot, start_by=snapshot.start_by + seconds)
                self._jobs[request_id] = moved
        waiting = (job for job in self._jobs.values() if job.status is Status.IN_QUEUE)
        self._deadlines = sorted((job.start_by, job.id) for job in waiting if job.start_by is not None)

    # --- watching

    def watch(self, request_id: str, changed: asyncio.Event) -> None:
        """Set `changed` whenever the job changes, until `unwatch`."""
        self._watchers[request_id].add(changed)

    def unwatch(self, request_id: str, changed: asyncio.Event) -> None:
        """End a `watch`."""
        watchers = self._watchers[request_id]
        watchers.discard(changed)
        if not watchers:
            del self._watchers[request_id]

    def wake_waiting(self) -> None:
        """Wake the watchers of waiting jobs if any position has changed since the last call.

        To be called by a timer: one claim changes thousands of positions, more often than clients read them.
        """
        if not self._moved:
            return
        self._moved = False
        for request_id in self._watchers:
            if request_id in self._jobs and self._jobs[request_id].status is Status.IN_QUEUE:
                self._wake(request_id)

    def wake_all(self) -> None:
        """Wake every watcher: the queue is closing."""
        for request_id in self._watchers:
            self._wake(request_id)

    def _wake(self, request_id: str) -> None:
        for changed in self._watchers.get(request_id, ()):
            changed.set()

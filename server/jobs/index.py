"""In-memory index of jobs: every unfinished one with its queue position, and the last finished ones.

The database is the truth; the index follows each commit. It answers each client's poll (every 100 ms) without reading
the disk, counts what waits, finds overdue start timeouts, and wakes the watchers of a job when that changes.
"""

import asyncio
import bisect
import collections
import itertools
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, TypeVar

import msgspec

from pipelines.messages import Priority
from server.jobs.job import Job, LogLine, Result, Snapshot, Status

FINISHED = 4096  # snapshots of finished jobs kept in memory, about a kilobyte each

# A thousand watchers who hear of every claim ahead of them would take a core. So at once hear those whose job is one of
# the next `NEAR`, of each job the first `PROMPT`: a page, a phone, a script and one more. The others take turns.
NEAR = 16
PROMPT = 4
TURNS = 10

T = TypeVar("T")


class Change:
    """What became of a job: one object for all who watch it. `snapshot.logs` has only lines not told before."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._made: dict[Hashable, Any] = {}

    def once(self, form: Hashable, make: Callable[[Snapshot], T]) -> T:
        """Return what `make` returns for the snapshot: called once for each `form`, and kept for all watchers."""
        if form not in self._made:
            self._made[form] = make(self.snapshot)
        made: T = self._made[form]
        return made


class Watcher:
    """A follower of one job. `changed` is set when there is news. `position`: what it was told last."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.changed = asyncio.Event()
        self.position: int | None = None


class _Watched:
    """A job with watchers, in the order in which they came, and its last change."""

    def __init__(self) -> None:
        self.watchers: dict[Watcher, None] = {}
        self._known: Snapshot | None = None
        self._position: int | None = None
        self._changes: dict[int, Change] = {}

    def change(self, known: Snapshot, position: int | None, since: int) -> Change:
        """Return the change to this state, with the log lines from number `since` on."""
        if known is not self._known or position != self._position:
            self._known, self._position, self._changes = known, position, {}
        if since not in self._changes:
            told = msgspec.structs.replace(known, queue_position=position, logs=known.logs[since:])
            self._changes[since] = Change(told)
        return self._changes[since]


class JobIndex:
    """Unfinished jobs and the last `keep` finished ones. To be used on the event loop; never waits.

    `turns`: in how many calls of `wake_waiting` every watcher hears once of a place far from the front.
    """

    def __init__(self, keep: int = FINISHED, *, near: int = NEAR, prompt: int = PROMPT, turns: int = TURNS) -> None:
        self._keep = keep
        self._near = near
        self._prompt = prompt
        self._turns = itertools.cycle(range(turns))  # given to the watchers
        self._turn = itertools.cycle(range(turns))  # whose it is
        self._jobs: dict[str, Snapshot] = {}
        self._finished: collections.OrderedDict[str, Snapshot] = collections.OrderedDict()
        self._seqs: dict[Priority, list[int]] = {priority: [] for priority in Priority}  # waiting seqs, ascending
        self._owned: collections.Counter[str] = collections.Counter()  # waiting jobs by owner
        self._deadlines: list[tuple[float, str]] = []  # (start_by, request id) of waiting jobs, ascending
        self._watched: dict[str, _Watched] = {}
        self._submitting: collections.Counter[str] = collections.Counter()  # jobs on their way to the disk, by owner
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

    def may_wait(self) -> bool:
        """Return whether there may be a job to claim."""
        return self.waiting > 0

    def may_end(self, snapshot: Snapshot) -> bool:
        """Return whether an unfinished job may end although this server claims no more."""
        return snapshot.status is not Status.IN_QUEUE

    def get(self, request_id: str, *, certain: bool = False) -> Snapshot | None:
        """Return the snapshot with its queue position; None if it is not here (the database may have it).

        With `certain` also None for one that may have ended since.
        """
        snapshot = self._known(request_id)
        if snapshot is None or snapshot.status is not Status.IN_QUEUE:
            return snapshot
        return msgspec.structs.replace(snapshot, queue_position=self._position(snapshot))

    def _known(self, request_id: str) -> Snapshot | None:
        return self._jobs.get(request_id) or self._finished.get(request_id)

    def _position(self, snapshot: Snapshot) -> int | None:
        if snapshot.status is not Status.IN_QUEUE:
            return None
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

    def started(self, job: Job) -> None:
        """Follow a claim of this server: it runs the job."""
        self._move(job.id, Snapshot.started)

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

    def watch(self, request_id: str) -> Watcher:
        """Return a new watcher of the job, until `unwatch`."""
        watcher = Watcher(next(self._turns))
        self._watched.setdefault(request_id, _Watched()).watchers[watcher] = None
        return watcher

    def unwatch(self, request_id: str, watcher: Watcher) -> None:
        """End a `watch`."""
        watched = self._watched[request_id]
        del watched.watchers[watcher]
        if not watched.watchers:
            del self._watched[request_id]

    def change(self, request_id: str, since: int) -> Change | None:
        """Return the present state of a watched job, with its log lines from number `since` on; None as from `get`."""
        known = self._known(request_id)
        if known is None:
            return None
        return self._watched[request_id].change(known, self._position(known), since)

    def wake_waiting(self) -> None:
        """Wake the watchers of waiting jobs whose position is not what they were told, if it is their turn to hear.

        To be called by a timer: one claim changes thousands of positions, more often than clients read them.
        """
        turn = next(self._turn)
        for request_id, watched in self._watched.items():
            snapshot = self._jobs.get(request_id)
            if snapshot is None or (position := self._position(snapshot)) is None:
                continue
            prompt = self._prompt if position < self._near else 0
            for number, watcher in enumerate(watched.watchers):
                if watcher.position != position and (number < prompt or watcher.turn == turn):
                    watcher.changed.set()

    def wake_all(self) -> None:
        """Wake every watcher: the queue is closing."""
        for request_id in self._watched:
            self._wake(request_id)

    def _wake(self, request_id: str) -> None:
        if request_id in self._watched:
            for watcher in self._watched[request_id].watchers:
                watcher.changed.set()

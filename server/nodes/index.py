"""The part of the index that one of several servers needs: jobs which it runs, watches, or was asked for just now.

The database is asked for news of them ten times a second, all together (`server/nodes/refresh.py`), however many
clients poll. So what is known here may be a tenth of a second old: enough for a status, not for a result.
"""

import collections
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec
from typing_extensions import override

from server.jobs.index import FINISHED, JobIndex
from server.jobs.job import Job, LogLine, Result, Snapshot, Status

ASKED_S = 10.0  # since a job was last asked for: clients poll every tenth of a second to every few seconds


class SharedIndex(JobIndex):
    """See `JobIndex`. Counts and places are those of the last refresh, and what has changed here since.

    `clock`: seconds, monotonic. `asked_s`: for how long a job that was asked for is kept up to date.
    """

    def __init__(
        self, keep: int = FINISHED, *, asked_s: float = ASKED_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(keep)
        self._asked_s = asked_s
        self._clock = clock
        self._asked: dict[str, float] = {}
        self._here: dict[str, Job] = {}  # jobs that this server runs
        self._places: dict[str, int] = {}
        self._counted: collections.Counter[str] = collections.Counter()  # waiting jobs by owner, of all servers

    # --- what is known

    @property
    @override
    def waiting(self) -> int:
        return self._counted.total() + self._submitting.total()

    @override
    def owned(self, owner: str) -> int:
        return self._counted[owner] + self._submitting[owner]

    @override
    def others_than(self, owners: Collection[str]) -> bool:
        return any(count > 0 and owner not in owners for owner, count in self._counted.items())

    @override
    def may_wait(self) -> bool:
        return True  # another server may have accepted one just now

    @override
    def may_end(self, snapshot: Snapshot) -> bool:
        return True  # another server may claim it

    @override
    def get(self, request_id: str, *, certain: bool = False) -> Snapshot | None:
        snapshot = super().get(request_id)
        if snapshot is None or (certain and not snapshot.completed):
            return None
        if not snapshot.completed:
            self._asked[request_id] = self._clock()
        return snapshot

    @override
    def _position(self, snapshot: Snapshot) -> int | None:
        return self._places.get(snapshot.id, 0) if snapshot.status is Status.IN_QUEUE else None

    # --- what happens here

    def found(self, snapshot: Snapshot, place: int | None) -> Snapshot:
        """Keep a job that was read from the database, with its place if it waits. Return it with that."""
        if snapshot.completed:
            self._drop(snapshot.id)
            return snapshot
        self._asked[snapshot.id] = self._clock()
        if snapshot.id in self._here and (known := self._jobs.get(snapshot.id)):
            return known  # with log lines that only this server has
        if place is not None:
            self._places[snapshot.id] = place
        self._jobs[snapshot.id] = snapshot
        return msgspec.structs.replace(snapshot, queue_position=self._position(snapshot))

    @override
    def add(self, snapshot: Snapshot) -> None:
        self._asked[snapshot.id] = self._clock()
        super().add(snapshot)

    @override
    def started(self, job: Job) -> None:
        super().started(job)
        self._here[job.id] = job

    @override
    def requeued(self, request_id: str) -> None:
        self._here.pop(request_id, None)
        super().requeued(request_id)

    @override
    def finished(self, request_id: str, result: Result, inference_time: float = 0.0) -> None:
        super().finished(request_id, result, inference_time)
        self._drop(request_id)

    @override
    def _enqueue(self, snapshot: Snapshot) -> None:
        self._places.setdefault(snapshot.id, self._counted.total())
        self._counted[snapshot.owner] += 1

    @override
    def _dequeue(self, snapshot: Snapshot) -> None:
        self._places.pop(snapshot.id, None)
        if snapshot.status is Status.IN_QUEUE and self._counted[snapshot.owner] > 0:
            self._counted[snapshot.owner] -= 1

    def _drop(self, request_id: str) -> None:
        for known in (self._jobs, self._here, self._asked, self._places):
            known.pop(request_id, None)

    # --- what the database says

    def here(self) -> Mapping[str, Job]:
        """Return the jobs that this server runs, by request id."""
        return self._here

    def logs(self, request_id: str) -> tuple[LogLine, ...]:
        """Return the lines known of an unfinished job."""
        snapshot = self._jobs.get(request_id)
        return snapshot.logs if snapshot else ()

    def of_interest(self) -> list[Snapshot]:
        """Return the jobs that are to be kept up to date; forget what none wants to know any more."""
        since = self._clock() - self._asked_s
        for request_id in list(self._jobs):
            wanted = request_id in self._here or request_id in self._watched
            if not wanted and self._asked.get(request_id, since) <= since:
                self._drop(request_id)
        return list(self._jobs.values())

    def in_queue(self) -> list[Snapshot]:
        """Return the known jobs that wait."""
        return [snapshot for snapshot in self._jobs.values() if snapshot.status is Status.IN_QUEUE]

    def count(self, by_owner: Mapping[str, int]) -> None:
        """Take over how many jobs wait, by owner."""
        self._counted = collections.Counter(by_owner)

    def place(self, places: Mapping[str, int]) -> None:
        """Take over the places of waiting jobs."""
        for request_id, place in places.items():
            snapshot = self._jobs.get(request_id)
            if snapshot is not None and snapshot.status is Status.IN_QUEUE:
                self._places[request_id] = place

    def renew(self, request_id: str, lines: Iterable[LogLine] = (), **changes: object) -> None:
        """Take over a job's present state: more lines of its log, and what else has changed; wake who watches it."""
        snapshot = self._jobs.get(request_id)
        if snapshot is None:
            return
        renewed = msgspec.structs.replace(snapshot, logs=(*snapshot.logs, *lines), **changes)
        if renewed == snapshot:
            return
        if renewed.completed:
            self._drop(request_id)
            self._remember(renewed)
        else:
            self._jobs[request_id] = renewed
        self._wake(request_id)

    def gone(self, request_id: str) -> None:
        """Take over that a job is stored no longer."""
        self._drop(request_id)
        self._wake(request_id)

"""What keeps a server's index up to date where several share a database: one statement every tenth of a second."""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from typing_extensions import override

from server.fal.errors import start_timed_out
from server.jobs.job import Job, LogLine, Result, Snapshot, Status
from server.jobs.queue import Follower
from server.jobs.store import JobStore, State
from server.nodes.index import SharedIndex

PLACES_SHARE = 0.01  # of a core of the database: numbering a long queue takes milliseconds
IDLE_S = 0.5  # between two refreshes while no client asks for a job, and none waits as far as a claim has seen
LOG_EVERY_S = 0.5  # for those who follow a job at another server
OVERDUE_EVERY_S = 1.0


class SharedStore(JobStore, Protocol):
    """A job store that other servers use too. `node`: this server's id, which its claims bear. `none_waited_at`:
    monotonic time at which a claim has seen that no job waits."""

    node: str
    none_waited_at: float

    async def refresh(self, known: Collection[Snapshot]) -> tuple[Sequence[State], Sequence[str], Mapping[str, int]]:
        """Return the states of those of the jobs that do not wait as before, the ids of those that are not stored, and
        how many jobs wait in all, by owner."""
        ...

    async def places(self, known: Collection[Snapshot]) -> Mapping[str, int]:
        """Return the places of those of the jobs that wait."""
        ...

    async def lines(self, request_id: str, first: int) -> Sequence[LogLine]:
        """Return the lines of a job's log from number `first` on."""
        ...

    async def log(self, job: Job, lines: Sequence[LogLine], first: int) -> bool:
        """Store lines of a job that this server runs, beginning with number `first`; each is stored once."""
        ...

    def chore(self, name: str) -> AbstractAsyncContextManager[bool]:
        """Context of work that one server at a time does for all: whether it is this one."""
        ...


class Refresh(Follower):
    """Keeps `index` up to date with `store`."""

    def __init__(
        self,
        store: SharedStore,
        index: SharedIndex,
        *,
        places_share: float = PLACES_SHARE,
        log_every_s: float = LOG_EVERY_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._store = store
        self._index = index
        self._places_share = places_share
        self._log_every_s = log_every_s
        self._idle_s = idle_s
        self._logged: dict[str, tuple[int, int]] = {}  # by request id: fence, and lines that are stored of that run
        # Monotonic times at which each is due.
        self._refresh_at = self._places_at = self._log_at = self._overdue_at = 0.0

    @override
    async def start(self) -> None:
        await self.tick()

    @override
    async def find(self, request_id: str) -> Snapshot | None:
        snapshot = await self._store.load(request_id)
        if snapshot is None:
            self._index.gone(request_id)
            return None
        place = None
        if snapshot.status is Status.IN_QUEUE and self._index.get(request_id) is None:
            place = (await self._store.places([snapshot])).get(request_id, 0)
        return self._index.found(snapshot, place)

    @override
    def chore(self, name: str) -> AbstractAsyncContextManager[bool]:
        return self._store.chore(name)

    @override
    async def tick(self) -> Collection[str]:
        await self._write_logs()
        wanted = self._index.of_interest()
        if not wanted and not self._index.waiting and time.monotonic() < self._known_until():
            return ()
        self._refresh_at = time.monotonic() + self._idle_s
        states, gone, waiting = await self._store.refresh(wanted)
        self._index.count(waiting)
        if waiting:
            await self._end_overdue()
        lost = [state.id for state in states if self._is_lost(state)]
        for state in states:
            await self._renew(state)
        for request_id in gone:
            self._index.gone(request_id)
        await self._renew_places()
        return lost

    def _known_until(self) -> float:
        """Return until when it holds that no job waits."""
        return max(self._refresh_at, self._store.none_waited_at + self._idle_s)

    def _is_lost(self, state: State) -> bool:
        """Return whether this server runs a job that has ended, waits again, or is another's."""
        job = self._index.here().get(state.id)
        if job is None or state.fence < job.fence:  # not ours; or read before our claim was committed
            return False
        return state.fence > job.fence or state.node != self._store.node

    async def _renew(self, state: State) -> None:
        if state.id in self._index.here() and not self._is_lost(state):  # what this server runs it knows itself
            return
        known = len(self._index.logs(state.id))
        lines = await self._store.lines(state.id, known) if state.lines > known else ()
        self._index.renew(
            state.id,
            lines,
            status=state.status,
            inference_time=state.inference_time,
            result_status=state.result_status,
            error=state.error,
            error_type=state.error_type,
            expired=state.expired,
        )

    async def _renew_places(self) -> None:
        waiting = self._index.in_queue()
        began = time.monotonic()
        if not waiting or began < self._places_at:
            return
        self._index.place(await self._store.places(waiting))
        now = time.monotonic()
        self._places_at = now + (now - began) / self._places_share

    async def _write_logs(self) -> None:
        if time.monotonic() < self._log_at:
            return
        self._log_at = time.monotonic() + self._log_every_s
        here = self._index.here()
        self._logged = {each: at for each, at in self._logged.items() if each in here and here[each].fence == at[0]}
        for request_id, job in list(here.items()):
            lines = self._index.logs(request_id)
            if request_id not in self._logged:  # a look: what is over within half a second is written with its end
                self._logged[request_id] = (job.fence, 0)
                continue
            _, stored = self._logged[request_id]
            if len(lines) > stored and await self._store.log(job, lines[stored:], stored):
                self._logged[request_id] = (job.fence, len(lines))

    async def _end_overdue(self) -> None:
        if time.monotonic() < self._overdue_at:
            return
        self._overdue_at = time.monotonic() + OVERDUE_EVERY_S
        await self._store.end_overdue(Result.failure(start_timed_out()))

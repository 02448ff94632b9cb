"""The job store in PostgreSQL, as one server sees it: claims and leases are those of its node, new at each start."""

import asyncio
import collections
import logging
import math
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from typing_extensions import override

from server.jobs.errors import DatabaseError, log_database_error
from server.jobs.job import Job, LogLine, NewJob, Outcome, Result, Snapshot, Status, cancelled
from server.jobs.postgres import reading, upkeep
from server.jobs.postgres import statements as sql
from server.jobs.postgres.connection import Row, Rows, Statement
from server.jobs.postgres.payloads import INLINE_BYTES, Payloads, PayloadStore
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.usage import Usage, Waiting
from server.jobs.store import GRACE_S, Held, JobStore, State

LOG = logging.getLogger(__name__)

LEASE_S = 15.0
UNREAD_DELAY_S = 3.0  # until a job is tried again whose input the object store could not give


class PostgresStore(JobStore):
    """The jobs of a database that other servers may share. `node`: this server's id, a new one at each start.

    A server that is silent for `lease_s` loses its jobs to the others. Payloads of more than `inline_bytes`, and all
    of owners who asked for no storing, lie in `payloads`.
    """

    def __init__(
        self,
        pool: Pool,
        payloads: PayloadStore,
        *,
        node: str,
        lease_s: float = LEASE_S,
        inline_bytes: int = INLINE_BYTES,
        measured_s: float = 1.0,
    ) -> None:
        self.pool = pool
        self.node = node
        self._lease_s = lease_s
        self._grace_s = min(GRACE_S, lease_s / 3)  # others who took over what went unheard would count it as a try
        self._payloads = Payloads(pool, payloads, inline_bytes)
        self._usage = Usage(pool, measured_s)
        self._waiting = Waiting()
        self.claims = collections.Counter({"jobs": 0, "none": 0})  # that found some, and that found none
        self.fenced = 0  # results refused, since the job was another's by then or had ended
        self._hopeful = True  # to find a job to claim
        self.none_waited_at = -math.inf  # monotonic time of the last look that found no job to wait
        self._unread: set[int] = set()  # seqs of claimed jobs whose inputs are on their way

    # --- a job's life

    @override
    def submit(self, new: NewJob) -> asyncio.Future[Snapshot]:
        return self.pool.write(self._submit(new))

    async def _submit(self, new: NewJob) -> Snapshot:
        stored = new.input if new.result is None else new.result.body
        inline, name = await self._payloads.put(stored, store_io=new.store_io)
        job = (new.id, new.app, new.owner, new.priority, reading.json(new.call), new.webhook, new.no_retry)
        arguments = (*job, new.store_io, new.start_timeout, inline, len(stored))
        more = (name, reading.text(new.warning))
        if new.result is not None:
            rows = await self.pool.fetch(sql.SUBMIT_ENDED, *arguments, *more, *reading.described(new.result))
        elif any(more):
            rows = await self.pool.fetch(sql.SUBMIT_MORE, *arguments, *more)
        else:
            rows = await self.pool.fetch(sql.SUBMIT, *arguments)
        if not rows:
            return reading.snapshot_of((await self.pool.fetch(reading.LOAD, new.id))[0])
        self._hopeful = True
        self._usage.touched()
        ((seq, submitted_at, start_by),) = rows
        accepted = msgspec.structs.replace(Snapshot.accepted(new, seq, submitted_at), start_by=start_by)
        return accepted if new.result is None else accepted.finished(new.result)

    @override
    def claim(
        self, count: int, *, after_others: Collection[str] = (), without: Collection[str] = ()
    ) -> asyncio.Future[list[Job]]:
        if after_others:
            return self.pool.write(self._claim(sql.CLAIM_IN_TURN, count, without, list(after_others)))
        return self.pool.write(self._claim(sql.CLAIM, count, without))

    @override
    def claim_old(self, count: int, *, waited_s: float, without: Collection[str] = ()) -> asyncio.Future[list[Job]]:
        return self.pool.write(self._claim(sql.CLAIM_OLD, count, without, waited_s))

    async def _claim(self, statement: Statement, count: int, without: Collection[str], *more: object) -> list[Job]:
        rows: Rows = ()
        began = time.monotonic()
        if self._hopeful or await self.pool.fetch(sql.LOOK, list(without)):
            rows = await self.pool.fetch(statement, count, self.node, self._lease_s, list(without), *more)
        elif not without:
            self.none_waited_at = began
        self._hopeful = bool(rows)
        self.claims["jobs" if rows else "none"] += 1
        jobs = [reading.job_of(row) for row in rows]
        if any(row["input_object"] is not None for row in rows):
            jobs = await self._read_inputs(jobs, rows)
        return sorted(jobs, key=lambda job: (job.priority, job.seq))

    async def _read_inputs(self, jobs: list[Job], rows: Sequence[Row]) -> list[Job]:
        """Return the jobs with their inputs. Those that can't be had at present wait again."""
        claimed = {job.seq for job in jobs}
        self._unread |= claimed
        try:
            inputs = await asyncio.gather(*(self._payloads.get(row["input"], row["input_object"]) for row in rows))
        except DatabaseError as error:
            log_database_error(LOG, "the inputs of claimed jobs could not be read", error)
            await asyncio.gather(*(self._release(job, refund=True, delay_s=UNREAD_DELAY_S) for job in jobs))
            return []
        finally:
            self._unread -= claimed
        return [
            msgspec.structs.replace(job, input=data or b"", damaged=job.damaged or data is None)
            for job, data in zip(jobs, inputs, strict=True)
        ]

    @override
    def finish(self, job: Job, result: Result, logs: Sequence[LogLine], inference_time: float) -> asyncio.Future[bool]:
        return self.pool.write(self._finish(job, result, logs, inference_time))

    async def _finish(self, job: Job, result: Result, logs: Sequence[LogLine], inference_time: float) -> bool:
        inline, name = await self._payloads.put(result.body, store_io=job.store_io)
        described = (inference_time, *reading.described(result), inline, len(result.body))
        arguments = (job.seq, job.fence, *described, *reading.arrays(logs))
        if name is None and self._payloads.is_inline(job):
            ended = await self.pool.fetch(sql.FINISH, *arguments)
        else:
            ended = await self.pool.fetch(sql.FINISH_OUTSIDE, *arguments, name)
            self._payloads.let_go(row[0] for row in ended)
        mine = bool(ended or await self.pool.fetch(sql.FINISHED, job.seq, job.fence, self.node))
        self.fenced += not mine
        self._usage.touched()
        return mine

    @override
    def cancel(self, request_id: str, logs: Sequence[LogLine]) -> asyncio.Future[Outcome]:
        return self.pool.write(self._cancel(request_id, logs))

    async def _cancel(self, request_id: str, logs: Sequence[LogLine]) -> Outcome:
        # By its own name it knows its work again, where the answer to the first try was lost.
        name = f"cancel-{uuid.uuid4().hex}-"
        result = cancelled()
        described = (*reading.described(result), result.body, len(result.body))
        rows = await self.pool.fetch(sql.CANCEL, request_id, name, *described, *reading.arrays(logs))
        if not rows:
            return Outcome.NOT_FOUND
        self._usage.touched()
        ((status, worker, input_object),) = rows
        self._payloads.let_go([input_object])
        if status == Status.COMPLETED:
            if worker is None or not worker.startswith(name):
                return Outcome.ALREADY_COMPLETED
            status = worker.removeprefix(name)
        return Outcome.REMOVED if status == Status.IN_QUEUE else Outcome.REQUESTED

    @override
    def end_overdue(self, result: Result) -> asyncio.Future[list[str]]:
        async def end() -> list[str]:
            rows = await self.pool.fetch(sql.END_OVERDUE, *reading.described(result), result.body, len(result.body))
            self._usage.touched()
            return [row[0] for row in rows]

        return self.pool.write(end())

    @override
    def release(self, job: Job, *, refund: bool, delay_s: float) -> asyncio.Future[bool]:
        return self.pool.write(self._release(job, refund=refund, delay_s=delay_s))

    async def _release(self, job: Job, *, refund: bool, delay_s: float) -> bool:
        return bool(await self.pool.fetch(sql.RELEASE, job.seq, job.fence, int(refund), delay_s))

    @override
    def heartbeat(self, running: Collection[Job]) -> asyncio.Future[Held]:
        mine = [*{job.seq for job in running} | self._unread]

        async def beat() -> Held:
            rows = await self.pool.fetch(sql.HEARTBEAT, self.node, self._lease_s, mine, self._grace_s)
            renewed = {request_id: fence for request_id, fence in rows if fence is not None}
            return Held(renewed, [request_id for request_id, fence in rows if fence is None])

        return self.pool.write(beat())

    # --- reading

    @override
    async def load(self, request_id: str) -> Snapshot | None:
        rows = await self.pool.read(self.pool.fetch(reading.LOAD, request_id))
        return reading.snapshot_of(rows[0]) if rows else None

    @override
    async def result(self, request_id: str) -> Result | None:
        return await self.pool.read(self._result(request_id))

    async def _result(self, request_id: str) -> Result | None:
        rows = await self.pool.fetch(reading.RESULT, request_id)
        if not rows:
            return None
        ((status, headers, error, error_type, output, name),) = rows
        body = await self._payloads.get(output, name)
        if body is None:  # wiped meanwhile
            return None
        return Result(status, body, msgspec.json.decode(headers, type=dict[str, str]), error, error_type)

    # --- what other servers do

    async def refresh(self, known: Collection[Snapshot]) -> tuple[Sequence[State], Sequence[str], Mapping[str, int]]:
        """See `SharedStore`. A long queue is not counted each time: see `Waiting`."""
        count = self._waiting.is_due
        rows = await self.pool.read(self.pool.fetch(reading.REFRESH, *reading.seqs_of(known), count))
        states, gone, by_owner = reading.refreshed(rows, known)
        if count:
            self._waiting.take(by_owner)
        return states, gone, self._waiting.by_owner

    async def places(self, known: Collection[Snapshot]) -> Mapping[str, int]:
        """Return the queue positions, from 0, of those of these jobs that wait."""
        ids = {snapshot.seq: snapshot.id for snapshot in known}
        rows = await self.pool.read(self.pool.fetch(reading.PLACES, list(ids)))
        return {ids[seq]: place for seq, place in rows}

    async def lines(self, request_id: str, first: int) -> list[LogLine]:
        """Return the job's log from line number `first` on."""
        rows = await self.pool.read(self.pool.fetch(reading.LINES, request_id, first))
        return [LogLine(*row) for row in rows]

    async def log(self, job: Job, lines: Sequence[LogLine], first: int) -> bool:
        """See `SharedStore`. False if the job is no longer this node's: then nothing was changed."""
        arguments = (job.seq, job.fence, first, *reading.arrays(lines))
        return bool(await self.pool.read(self.pool.fetch(sql.LOG, *arguments)))

    def chore(self, name: str) -> AbstractAsyncContextManager[bool]:
        """Context of work that one server at a time does for all: whether it is this one."""
        return self.pool.chore(name)

    # --- letting go, and the end

    @override
    def expire(self, older_s: float, count: int, owner: str | None = None) -> asyncio.Future[list[str]]:
        if owner is None:
            return self.pool.write(self._let_go(upkeep.EXPIRE, older_s, count))
        return self.pool.write(self._let_go(upkeep.EXPIRE_OWNED, older_s, count, owner))

    @override
    def wipe(self, request_id: str) -> asyncio.Future[list[str]]:
        return self.pool.write(self._let_go(upkeep.WIPE, request_id))

    @override
    def wipe_private(self, request_id: str) -> asyncio.Future[list[str]]:
        return self.pool.write(self._let_go(upkeep.WIPE_PRIVATE, request_id))

    async def _let_go(self, statement: Statement, *arguments: Any) -> list[str]:
        request_ids = await self._payloads.expire(statement, *arguments)
        self._usage.changed()
        return request_ids

    @override
    def delete_tombstones(self, older_s: float, count: int) -> asyncio.Future[None]:
        async def delete() -> None:
            await self.pool.fetch(upkeep.DELETE_TOMBSTONES, older_s, count)

        return self.pool.write(delete())

    @override
    async def used_bytes(self) -> int:
        return (await self.pool.read(self._usage.measured())).total

    @override
    async def input_bytes(self) -> Mapping[str, int]:
        return (await self.pool.read(self._usage.measured())).inputs

    @override
    async def result_bytes(self) -> Mapping[str, int]:
        return (await self.pool.read(self._usage.measured())).results

    @override
    async def tidy(self, *, wiped: bool) -> None:
        """PostgreSQL tidies by itself; what is left to do is in the object store."""
        await self.pool.read(self._payloads.sweep())

    @override
    def hurry(self) -> None:
        self.pool.hurry()

    @override
    async def close(self) -> None:
        await self.pool.close()

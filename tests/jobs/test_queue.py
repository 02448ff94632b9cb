"""The durable queue with a runner of the test's own: what is run, what becomes of it, what survives."""

import asyncio
import collections
import contextlib
import itertools
import json
import logging
import multiprocessing
import threading
import time

import pytest

from pipelines.messages import Decoded, Large, Log, Preview, Priority, Started
from server.fal.errors import InvalidInput, PassingFailure, RequestError, invalid
from server.jobs.attempt import Retry, retry
from server.jobs.clock import SteadyClock
from server.jobs.job import Job, NewJob, Outcome, Result, Status
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore
from server.jobs.times import SHIPPED, QueueTimes
from server.settings import Settings
from tests.jobs.queues import queue_on
from tests.support.crashing_queue import serve

pytestmark = pytest.mark.anyio

DISCONNECTED = RequestError("runner_disconnected", "the engine died")
LASTING = invalid("image_url", "file_download_error", "no such host")


def new(seed=42, **wishes) -> NewJob:
    return NewJob(**{"app": "fal-ai/lcm-sd15-i2i", "input": json.dumps({"seed": seed}).encode(), **wishes})


class Clock(SteadyClock):
    """Time as the test has it. `set_by`: seconds that the machine's clock was set by."""

    def __init__(self) -> None:
        self.now, self.set_by = 1000.0, 0.0
        super().__init__(lambda: self.now + self.set_by, lambda: self.now)


class Engines:
    """A runner that does as it is told. Jobs wait for `go`; then each `raises` in turn, else the seed is echoed."""

    def __init__(self, *raises: Exception, starts: bool = True) -> None:
        self.go = asyncio.Event()
        self.raises = list(raises)
        self.starts = starts
        self.begun: list[int] = []
        self.running = 0
        self.most = 0
        self.cancelled: list[int] = []
        self.changed = asyncio.Condition()

    async def run(self, job, on_event):
        seed = json.loads(job.input)["seed"]
        if self.starts:
            on_event(Started(job.id))
        on_event(Log(job.id, f"seed {seed}"))
        await self._count(1, seed)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(seed)
            raise
        finally:
            await self._count(-1, None)
        if self.raises:
            raise self.raises.pop(0)
        on_event(Log(job.id, "done"))
        return {"seed": seed}

    async def _count(self, change, seed):
        async with self.changed:
            self.running += change
            self.most = max(self.most, self.running)
            self.begun += [] if seed is None else [seed]
            self.changed.notify_all()

    async def until(self, condition):
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)


@contextlib.asynccontextmanager
async def serving(folder, engines, *, capacity=2, calls=0, grace_s=0.0, clock=None, times=SHIPPED, **settings):
    """A started queue on the database in `folder`."""
    store = SQLiteStore(Database(folder / "jobs.sqlite"), clock)
    room = capacity if callable(capacity) else lambda: capacity
    arguments = {"capacity": room, "settings": Settings(data_dir=folder, **settings), "key_share": 0.5}
    queue = queue_on(store, engines.run, calls=lambda: calls, **arguments, times=times)
    await queue.start()
    try:
        yield queue
    finally:
        await queue.close(grace_s)
        await store.close()


async def ended(queue, request_id):
    """The job's last snapshot, with its whole log."""
    async with asyncio.timeout(10), contextlib.aclosing(queue.watch(request_id)) as watching:
        async for _ in watching:
            pass
    return await queue.get(request_id)


async def started(queue, request_id):
    async with asyncio.timeout(10), contextlib.aclosing(queue.watch(request_id)) as watching:
        async for change in watching:
            if change.snapshot.status is not Status.IN_QUEUE:
                return


async def eventually(condition):
    """Poll a condition that nothing announces until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
def engines():
    """Engines that answer at once."""
    engines = Engines()
    engines.go.set()
    return engines


@pytest.fixture
def held():
    """Engines that wait for `go`."""
    return Engines()


# --- results


async def test_a_job_is_run_and_its_result_is_the_bare_output(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new(seed=7))
        snapshot = await ended(queue, job.id)

        assert await queue.result(job.id) == Result(200, b'{"seed":7}')
        assert (snapshot.status, snapshot.error) == (Status.COMPLETED, None)
        assert snapshot.inference_time > 0


async def test_an_unfinished_job_has_no_result(tmp_path, held):
    async with serving(tmp_path, held) as queue:
        job = await queue.submit(new())

        assert await queue.result(job.id) is None


async def test_what_the_run_raises_is_the_result(tmp_path, engines):
    error = invalid("image_url", "image_load_error", "not an image")
    engines.raises = [error]
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new())
        snapshot = await ended(queue, job.id)

        assert await queue.result(job.id) == Result.failure(error)
        assert snapshot.error_type == "image_load_error"


async def test_a_fault_of_ours_is_a_500_and_its_message_stays_out_of_the_log(tmp_path, engines, caplog):
    engines.raises = [ValueError("canary prompt")]
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new())
        snapshot = await ended(queue, job.id)

        assert (snapshot.result_status, snapshot.error_type) == (500, "internal_error")
        assert b"canary" not in (await queue.result(job.id)).body
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text


async def test_a_job_may_be_accepted_with_its_answer(tmp_path, engines):
    result = Result.failure(InvalidInput([{"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}]))
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new(result=result))

        assert (await queue.get(job.id)).status is Status.COMPLETED
        assert await queue.result(job.id) == result
    assert engines.begun == []


async def test_previews_are_no_news_for_a_queued_job(tmp_path, engines):
    async def run(job, on_event):
        on_event(Preview(job.id, 1, 4, None))
        return {}

    engines.run = run
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new())

        assert (await ended(queue, job.id)).logs == ()


# --- who runs when


async def test_no_more_jobs_run_at_once_than_there_is_room_for(tmp_path, engines):
    async with serving(tmp_path, engines, capacity=3) as queue:
        jobs = [await queue.submit(new(seed=seed)) for seed in range(20)]
        await asyncio.gather(*(ended(queue, job.id) for job in jobs))

    assert engines.most <= 3


async def test_jobs_run_by_priority_then_in_the_order_of_acceptance(tmp_path, held):
    async with serving(tmp_path, held, capacity=1) as queue:
        first = await queue.submit(new(seed=0))
        await started(queue, first.id)
        jobs = [await queue.submit(new(seed=1, priority=Priority.LOW))]
        jobs += [await queue.submit(new(seed=seed)) for seed in (2, 3)]
        assert [(await queue.get(job.id)).queue_position for job in jobs] == [2, 0, 1]
        held.go.set()
        await asyncio.gather(*(ended(queue, job.id) for job in jobs))

    assert held.begun == [0, 2, 3, 1]


async def test_jobs_wait_while_there_is_no_engine_and_run_once_there_is(tmp_path, engines):
    room = 0
    async with serving(tmp_path, engines, capacity=lambda: room) as queue:
        job = await queue.submit(new())
        assert queue.length() == 1
        room = 1
        queue.wake()

        assert (await ended(queue, job.id)).result_status == 200


async def test_a_job_that_a_claim_has_not_seen_yet_is_looked_for_once_it_is_stored(tmp_path, engines):
    async with serving(tmp_path, engines, times=QueueTimes(ask=3600.0)) as queue:
        claim, claims = queue._store.claim, []

        def claim_too_early(count, **options):
            claims.append(count)
            return claim(count if claims[1:] else 0, **options)

        queue._store.claim = claim_too_early
        job = await queue.submit(new())

        assert (await ended(queue, job.id)).result_status == 200


async def test_work_is_looked_for_less_often_once_there_has_been_none_for_a_while(tmp_path, engines):
    looks = []

    async def find_none(*_, **__):
        looks.append(time.monotonic())
        return []

    async with serving(tmp_path, engines, times=QueueTimes(ask=0.01, ask_in_lull=0.5, lull=1.0)) as queue:
        queue._store.claim = lambda *_, **__: asyncio.ensure_future(find_none())
        await queue.submit(new())
        await eventually(lambda: any(after - before > 0.4 for before, after in itertools.pairwise(looks)))

    # A submit wakes the queue twice.
    assert sum(after - before < 0.4 for before, after in itertools.pairwise(looks)) > 4


async def test_a_server_that_is_alone_takes_jobs_beside_calls(tmp_path, engines):
    async with serving(tmp_path, engines, capacity=2, calls=9) as queue:
        job = await queue.submit(new())

        assert (await ended(queue, job.id)).result_status == 200


async def test_jobs_are_left_to_others_while_calls_leave_no_room_until_they_are_old(tmp_path, held):
    clock, looks = Clock(), []
    async with serving(tmp_path, held, capacity=4, calls=2, clock=clock, times=QueueTimes(ask=0.01, left=5.0)) as queue:
        claim_old = queue._store.claim_old
        queue._store.claim_old = lambda *args, **options: looks.append(args) or claim_old(*args, **options)
        for seed in range(5):
            await queue.submit(new(seed=seed))
        await held.until(lambda: held.running == 2)
        await eventually(lambda: looks[3:])
        young = held.begun[:]
        clock.now += 6.0
        await held.until(lambda: held.running == 4)

    assert (young, held.begun) == ([0, 1], [0, 1, 2, 3])
    assert looks[:3] == [(2,)] * 3


def large_of(engines, owner):
    """Let all pictures of an owner be large, and never decoded."""
    run = engines.run

    async def run_large(job, on_event):
        if job.owner == owner:
            on_event(Large(job.id, alone=True))
        return await run(job, on_event)

    engines.run = run_large


async def test_jobs_that_wait_for_a_decoder_leave_room_for_those_of_other_owners(tmp_path, held):
    large_of(held, "bad")
    async with serving(tmp_path, held, capacity=2) as queue:
        others = [await queue.submit(new(seed=seed, owner="good")) for seed in range(2)]
        await held.until(lambda: held.running == 2)
        for seed in (10, 11, 12):
            await queue.submit(new(seed=seed, owner="bad"))
        await queue.submit(new(seed=100, owner="third"))
        await queue.cancel(others[0].id)
        await held.until(lambda: 100 in held.begun)

        assert held.begun == [0, 1, 10, 100]


async def test_while_no_other_waits_jobs_that_wait_for_a_decoder_are_twice_as_many_as_run(tmp_path, held):
    large_of(held, "bad")
    async with serving(tmp_path, held, capacity=2) as queue:
        for seed in range(8):
            await queue.submit(new(seed=seed, owner="bad"))
        await held.until(lambda: held.running >= 4)
        await queue.submit(new(seed=100, owner="good"))
        await held.until(lambda: 100 in held.begun)

        assert len(held.begun) <= 4 + 1 + 1  # one claim takes up to two


async def test_a_job_whose_picture_is_decoded_takes_a_place_again(tmp_path, held):
    run = held.run

    async def run_large(job, on_event):
        on_event(Large(job.id, alone=True))
        on_event(Decoded(job.id))
        return await run(job, on_event)

    held.run = run_large
    async with serving(tmp_path, held, capacity=1) as queue:
        jobs = [await queue.submit(new(seed=seed)) for seed in range(4)]
        await started(queue, jobs[0].id)
        held.go.set()
        await asyncio.gather(*(ended(queue, job.id) for job in jobs))

    assert held.most == 1


# --- trying again


async def test_a_job_that_an_engine_dropped_is_run_again_in_its_time(tmp_path, engines):
    engines.raises = [DISCONNECTED]
    clock = Clock()
    async with serving(tmp_path, engines, clock=clock) as queue:
        job = await queue.submit(new())
        await engines.until(lambda: engines.begun and not engines.running)
        await eventually(lambda: queue.length() == 1)
        clock.now += 1.0
        snapshot = await ended(queue, job.id)

    assert snapshot.result_status == 200
    assert engines.begun == [42, 42]


@pytest.mark.parametrize(
    ("error_type", "attempt", "no_retry", "expected"),
    [
        ("runner_disconnected", 1, False, Retry(1.0, refund=False)),
        ("runner_disconnected", 4, False, Retry(8.0, refund=False)),
        ("runner_disconnected", 9, False, Retry(30.0, refund=False)),
        ("runner_disconnected", 10, False, None),
        ("runner_disconnected", 1, True, None),
        ("concurrent_requests_limit", 1, False, Retry(3.0, refund=True)),
        ("concurrent_requests_limit", 10, False, Retry(3.0, refund=True)),
        ("concurrent_requests_limit", 1, True, None),
        ("runner_scheduling_failure", 10, True, Retry(1.0, refund=True)),
        ("runner_server_error", 1, False, None),
        ("internal_error", 1, False, None),
        ("bad_request", 1, False, None),
    ],
)
def test_which_errors_are_worth_another_try_and_when(error_type, attempt, no_retry, expected):
    assert retry(RequestError(error_type, "no"), tried(attempt, no_retry=no_retry)) == expected


def tried(attempt, *, no_retry):
    """Return a job at its `attempt`th try."""
    return Job(
        seq=1,
        id="id",
        app="a/b",
        owner="",
        priority=Priority.NORMAL,
        input=b"{}",
        call={},
        attempt=attempt,
        fence=attempt,
        no_retry=no_retry,
        start_in=None,
    )


@pytest.mark.parametrize(
    ("attempt", "no_retry", "expected"),
    [(1, False, Retry(1.0, refund=False)), (9, False, Retry(30.0, refund=False)), (10, False, None), (1, True, None)],
)
def test_what_may_pass_is_tried_again_a_limited_number_of_times(attempt, no_retry, expected):
    assert retry(PassingFailure("at present", LASTING), tried(attempt, no_retry=no_retry)) == expected


async def test_what_has_not_passed_after_all_tries_is_the_jobs_lasting_error(tmp_path, engines):
    engines.raises = [PassingFailure("at present", LASTING)]
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new(no_retry=True))

        assert (await ended(queue, job.id)).result_status == 422


async def test_a_job_that_asked_for_no_retry_is_run_once(tmp_path, engines):
    engines.raises = [DISCONNECTED]
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new(no_retry=True))

        assert (await ended(queue, job.id)).result_status == 503
    assert engines.begun == [42]


async def test_no_engine_is_no_failure_of_the_job(tmp_path, engines):
    engines.raises = [RequestError("runner_scheduling_failure", "the model can't be had")] * 12
    clock = Clock()
    async with serving(tmp_path, engines, clock=clock) as queue:
        job = await queue.submit(new(no_retry=True))
        ending = asyncio.create_task(ended(queue, job.id))
        while not ending.done():
            clock.now += 1.0
            queue.wake()
            await asyncio.sleep(0)

    assert (await ending).result_status == 200


# --- cancelling


async def test_cancelling_a_waiting_job_removes_it(tmp_path, held):
    async with serving(tmp_path, held, capacity=0) as queue:
        job = await queue.submit(new())

        assert await queue.cancel(job.id) is Outcome.REMOVED
        assert (await queue.get(job.id)).error_type == "client_cancelled"
        assert (await queue.result(job.id)).status == 499
        assert queue.length() == 0


async def test_cancelling_a_running_job_stops_it(tmp_path, held):
    async with serving(tmp_path, held) as queue:
        job = await queue.submit(new(seed=7))
        await held.until(lambda: held.running == 1)

        assert await queue.cancel(job.id) is Outcome.REQUESTED
        assert (await queue.get(job.id)).status is Status.COMPLETED
        assert (await queue.result(job.id)).status == 499
        await held.until(lambda: held.running == 0)
    assert held.cancelled == [7]


async def test_a_job_that_is_cancelled_between_its_claim_and_its_run_holds_no_place(tmp_path, held):
    async with serving(tmp_path, held) as queue:
        runner = queue._runner
        spawn = runner._spawn

        def spawn_and_cancel(job):
            spawn(job)
            runner.cancel(job.id)  # between its new task and that task's first step

        runner._spawn = spawn_and_cancel
        await queue.submit(new())

        async with asyncio.timeout(10):
            while queue.in_flight or queue.length():  # noqa: ASYNC110 – a place tells no one that it is free
                await asyncio.sleep(0.01)


async def test_a_run_that_ignores_its_cancellation_cannot_publish(tmp_path, held):
    async def run(job, on_event):
        try:
            return await Engines.run(held, job, on_event)
        except asyncio.CancelledError:
            return {"seed": "cancelled"}

    held.run, own = run, held
    async with serving(tmp_path, held) as queue:
        job = await queue.submit(new())
        await own.until(lambda: own.running == 1)
        await queue.cancel(job.id)
        await eventually(lambda: queue.in_flight == 0)

        assert (await queue.result(job.id)).status == 499


async def test_a_finished_or_unknown_job_cannot_be_cancelled(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new())
        await ended(queue, job.id)

        assert await queue.cancel(job.id) is Outcome.ALREADY_COMPLETED
        assert await queue.cancel("unknown") is Outcome.NOT_FOUND
        assert (await queue.result(job.id)).status == 200


# --- start timeouts


async def is_a_start_timeout(queue, job):
    result = (await ended(queue, job.id)) and await queue.result(job.id)
    return (result.status, result.headers["X-Fal-Request-Timeout-Type"]) == (504, "user")


async def test_a_job_that_still_waits_when_its_start_timeout_is_over_gets_504(tmp_path, held):
    clock = Clock()
    async with serving(tmp_path, held, capacity=0, clock=clock) as queue:
        job = await queue.submit(new(start_timeout=2.0))
        clock.now += 2.0

        assert await is_a_start_timeout(queue, job)


async def test_a_claimed_job_that_no_engine_took_in_time_gets_504(tmp_path):
    engines = Engines(starts=False)
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new(start_timeout=0.15))

        assert await is_a_start_timeout(queue, job)
    assert engines.cancelled == [42]


async def test_a_job_that_has_started_may_take_its_time(tmp_path, held):
    clock = Clock()
    async with serving(tmp_path, held, clock=clock) as queue:
        job = await queue.submit(new(start_timeout=0.15))
        await held.until(lambda: held.running == 1)
        clock.now += 10.0
        await asyncio.sleep(0.3)
        held.go.set()

        assert (await ended(queue, job.id)).result_status == 200


async def test_a_start_timeout_that_can_not_be_stored_is_stored_as_soon_as_it_can_be(tmp_path, held, caplog):
    clock = Clock()
    async with serving(tmp_path, held, capacity=0, clock=clock, times=QueueTimes(disk_retry=0.01)) as queue:
        job = await queue.submit(new(start_timeout=2.0))
        await alter(queue, FILL)
        clock.now += 2.0
        await eventually(lambda: "housekeeping failed" in caplog.text)
        await alter(queue, FREE)

        assert await is_a_start_timeout(queue, job)


async def test_nothing_is_kept_of_the_start_timeouts_of_jobs_that_have_ended(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        jobs = [await queue.submit(new(start_timeout=3600.0)) for _ in range(5)]
        await asyncio.gather(*(ended(queue, job.id) for job in jobs))

        assert queue._index._deadlines == []


# --- admission


async def test_a_full_queue_answers_429_at_once(tmp_path, held):
    async with serving(tmp_path, held, capacity=0, max_queue=3) as queue:
        ends = await asyncio.gather(*(queue.submit(new()) for _ in range(5)), return_exceptions=True)

        refused = [end for end in ends if isinstance(end, RequestError)]
        assert [(error.status, error.error_type) for error in refused] == [(429, "concurrent_requests_limit")] * 2
        assert queue.length() == 3


@pytest.mark.parametrize(("waiting", "limit", "accepted"), [(2, 2, True), (3, 2, False), (1, 0, False), (0, 0, True)])
async def test_a_caller_may_refuse_to_wait_behind_too_many(tmp_path, held, waiting, limit, accepted):
    async with serving(tmp_path, held, capacity=0) as queue:
        for _ in range(waiting):
            await queue.submit(new())
        (end,) = await asyncio.gather(queue.submit(new(max_queue_length=limit)), return_exceptions=True)

    assert isinstance(end, RequestError) is not accepted


async def test_a_key_with_many_jobs_keeps_no_other_key_out(tmp_path, held):
    async with serving(tmp_path, held, capacity=2) as queue:
        many = [await queue.submit(new(seed, owner="many")) for seed in range(6)]
        await held.until(lambda: held.running == 2)
        await queue.submit(new(99, owner="few"))
        await queue.cancel(many[0].id)
        await held.until(lambda: len(held.begun) == 3)

        assert held.begun == [0, 1, 99]


async def test_a_used_up_disk_quota_answers_429(tmp_path, held):
    async with serving(tmp_path, held, capacity=0, jobs_quota_bytes=1) as queue:
        await eventually(lambda: queue._retention.disk_full)

        with pytest.raises(RequestError, match="disk"):
            await queue.submit(new())


async def test_a_full_disk_refuses_submits_and_keeps_results_until_there_is_room(tmp_path, held, caplog):
    caplog.set_level(logging.CRITICAL)
    async with serving(tmp_path, held, times=QueueTimes(disk_retry=0.01)) as queue:
        job = await queue.submit(new())
        await held.until(lambda: held.running == 1)
        pages = await cap_database(queue, pages=1)
        held.go.set()
        with pytest.raises(RequestError) as refused:
            await queue.submit(new(input=b"x" * 200_000))
        await cap_database(queue, pages)

        assert refused.value.status == 429
        assert (await ended(queue, job.id)).result_status == 200


async def test_a_cancellation_that_can_not_be_stored_is_429(tmp_path, held):
    async with serving(tmp_path, held, capacity=0) as queue:
        job = await queue.submit(new())
        await alter(queue, FILL)
        with pytest.raises(RequestError) as refused:
            await queue.cancel(job.id)
        await alter(queue, FREE)

        assert refused.value.status == 429
        assert await queue.cancel(job.id) is Outcome.REMOVED


async def test_what_could_not_be_wiped_is_wiped_as_soon_as_it_can_be(tmp_path, held):
    held.go.set()
    async with serving(tmp_path, held) as queue:
        job = await queue.submit(new(store_io=False))
        snapshot = await ended(queue, job.id)
        await alter(queue, FILL)
        await queue.delivered(snapshot)
        kept = await queue.result(job.id)
        await alter(queue, FREE)
        await queue._retention.keep_quota()

        assert kept is not None
        assert await queue.result(job.id) is None


FILL = "CREATE TRIGGER full BEFORE UPDATE ON jobs BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
FREE = "DROP TRIGGER full"


async def alter(queue, statement):
    """Fills the disk, as far as changes to jobs go, or frees it."""
    await queue._store.database.write(lambda connection: connection.exec_driver_sql(statement).close())


async def cap_database(queue, pages):
    """Make SQLite say that the disk is full beyond that many pages (or as many as there are); return the old cap."""

    def operation(connection):
        old = connection.exec_driver_sql("PRAGMA max_page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}").all()
        return old

    return await queue._store.database.write(operation)


# --- watching


async def test_a_watcher_sees_every_state_and_each_log_line_once(tmp_path, held):
    room, seen = 0, []
    async with serving(tmp_path, held, capacity=lambda: room) as queue:
        job = await queue.submit(new(seed=7))
        async with asyncio.timeout(10), contextlib.aclosing(queue.watch(job.id)) as watching:
            async for change in watching:
                seen.append(change.snapshot)
                room = 1
                if change.snapshot.logs:
                    held.go.set()

    assert [line.message for snapshot in seen for line in snapshot.logs] == ["seed 7", "done"]
    assert list(dict.fromkeys(snapshot.status for snapshot in seen)) == [*Status]


async def test_a_watcher_hears_that_it_moves_up(tmp_path, held):
    async with serving(tmp_path, held, capacity=0) as queue:
        ahead, job = [await queue.submit(new()) for _ in range(2)]
        async with asyncio.timeout(10), contextlib.aclosing(queue.watch(job.id)) as watching:
            first = await anext(watching)
            await queue.cancel(ahead.id)
            second = await anext(watching)

    assert (first.snapshot.queue_position, second.snapshot.queue_position) == (1, 0)


async def test_there_is_nothing_to_watch_of_an_unknown_job(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        assert [snapshot async for snapshot in queue.watch("unknown")] == []


async def test_watchers_are_let_go_when_the_queue_closes(tmp_path, held):
    async with serving(tmp_path, held, capacity=0) as queue:
        job = await queue.submit(new())
        watching = asyncio.create_task(ended(queue, job.id))
        await asyncio.sleep(0)
        await queue.close(0.0)

        assert (await watching).status is Status.IN_QUEUE


async def test_of_a_queue_that_is_shut_jobs_are_watched_which_still_run_and_no_others(tmp_path, held):
    async with serving(tmp_path, held, capacity=1, grace_s=10.0) as queue:
        running, waiting = [await queue.submit(new()) for _ in range(2)]
        await started(queue, running.id)
        watching = [asyncio.create_task(ended(queue, job.id)) for job in (running, waiting)]
        await asyncio.sleep(0)
        queue.shut(10.0)
        left = await watching[1]
        held.go.set()

        assert (left.status, (await watching[0]).status) == (Status.IN_QUEUE, Status.COMPLETED)


async def test_before_the_time_for_what_is_in_flight_is_over_no_job_is_watched_any_more(tmp_path, held):
    async with serving(tmp_path, held) as queue:
        job = await queue.submit(new())
        await started(queue, job.id)
        watching = asyncio.create_task(ended(queue, job.id))
        await asyncio.sleep(0)
        queue.shut(1.0)

        assert (await asyncio.wait_for(watching, 0.9)).status is Status.IN_PROGRESS


# --- ending and beginning again


async def test_closing_lets_running_jobs_finish(tmp_path, held):
    async with serving(tmp_path, held, grace_s=10.0) as queue:
        job = await queue.submit(new())
        await held.until(lambda: held.running == 1)
        asyncio.get_running_loop().call_later(0.05, held.go.set)
        await queue.close(10.0)

        assert (await queue.get(job.id)).result_status == 200


async def test_closing_gives_back_the_tries_that_it_cut_short(tmp_path, held):
    async with serving(tmp_path, held) as queue:
        job = await queue.submit(new())
        await held.until(lambda: held.running == 1)
    store = SQLiteStore(Database(tmp_path / "jobs.sqlite"))
    claims = await store.claim(1)
    await store.close()

    assert [(claim.id, claim.attempt) for claim in claims] == [(job.id, 1)]


async def test_a_closed_queue_accepts_nothing(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        await queue.close(0.0)

        with pytest.raises(RequestError, match="shutting down"):
            await queue.submit(new())


async def test_what_was_not_finished_is_run_by_the_next_server_in_the_same_order(tmp_path, engines, held):
    async with serving(tmp_path, held, capacity=2) as queue:
        jobs = [await queue.submit(new(seed=seed)) for seed in range(4)]
        await held.until(lambda: held.running == 2)
    async with serving(tmp_path, engines, capacity=lambda: room) as queue:
        room = 0
        assert [(await queue.get(job.id)).queue_position for job in jobs] == [0, 1, 2, 3]
        room = 1
        await asyncio.gather(*(ended(queue, job.id) for job in jobs))

    assert sorted(held.cancelled) == [0, 1]
    assert engines.begun == [0, 1, 2, 3]


async def test_a_job_that_outlives_ten_servers_is_given_up(tmp_path, engines, held):
    async with serving(tmp_path, held, capacity=0) as queue:
        job = await queue.submit(new())
    store = SQLiteStore(Database(tmp_path / "jobs.sqlite"))
    for _ in range(10):
        (claim,) = await store.claim(1)
        await store.release(claim, refund=False, delay_s=0.0)
    await store.close()
    async with serving(tmp_path, engines) as queue:
        snapshot = await ended(queue, job.id)

    assert (snapshot.result_status, snapshot.error) == (500, "Gave up after 10 tries")
    assert engines.begun == []


async def test_a_caller_who_leaves_during_submit_leaves_a_job_that_is_known(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        wish = new()
        leaving = asyncio.create_task(queue.submit(wish))
        await asyncio.sleep(0)
        leaving.cancel()

        with pytest.raises(asyncio.CancelledError):
            await leaving
        await eventually(lambda: queue._index.get(wish.id) is not None)
        assert (await ended(queue, wish.id)).result_status == 200


async def test_a_worker_whose_lease_was_lost_is_stopped(tmp_path, held):
    async with serving(tmp_path, held, capacity=1, times=QueueTimes(heartbeat=0.02)) as queue:
        await queue.submit(new(seed=1))
        await held.until(lambda: held.running == 1)
        later = Clock()
        later.now = 1e12
        await SQLiteStore(queue._store.database, later).heartbeat(())
        await held.until(lambda: held.cancelled == [1])


async def test_what_the_follower_says_must_not_go_on_is_stopped(tmp_path, held):
    async with serving(tmp_path, held, times=QueueTimes(tick=3600.0)) as queue:
        job = await queue.submit(new(seed=1))
        await held.until(lambda: held.running == 1)

        async def tick():
            return [job.id]

        queue._follower.tick = tick
        await queue._tick()
        await held.until(lambda: held.cancelled == [1])


async def test_a_claimed_job_is_named_by_heartbeats_before_it_runs(tmp_path, held):
    async with serving(tmp_path, held, times=QueueTimes(heartbeat=0.01)) as queue:
        meet, beat, going, named = queue._runner._meet, queue._store.heartbeat, asyncio.Event(), []

        async def meet_later(job):
            await going.wait()
            await meet(job)

        def beat_and_tell(running):
            named.append([job.id for job in running])
            return beat(running)

        queue._runner._meet, queue._store.heartbeat = meet_later, beat_and_tell
        job = await queue.submit(new())
        try:
            await eventually(lambda: [job.id] in named)
            assert queue.in_flight == 0
        finally:
            going.set()
        await held.until(lambda: held.running == 1)
        named.clear()
        await eventually(lambda: named)

        assert named[0] == [job.id]


# --- privacy and expiry


async def test_a_private_job_is_gone_once_it_is_delivered(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new(store_io=False))
        snapshot = await ended(queue, job.id)
        await queue.delivered(snapshot)

        assert await queue.result(job.id) is None
        assert (await queue.get(job.id)).expired


async def test_other_jobs_can_be_fetched_again_and_again(tmp_path, engines):
    async with serving(tmp_path, engines) as queue:
        job = await queue.submit(new())
        await queue.delivered(await ended(queue, job.id))

        assert (await queue.result(job.id)).status == 200


async def test_results_expire_while_the_server_runs(tmp_path, engines):
    clock, times = Clock(), QueueTimes(expire=0.02)
    async with serving(tmp_path, engines, clock=clock, times=times, result_ttl=5.0, tombstone_ttl=50.0) as queue:
        job = await queue.submit(new())
        await ended(queue, job.id)
        clock.now += 6.0
        await eventually(lambda: queue._index.get(job.id) is None)
        assert (await queue.get(job.id)).expired
        clock.now += 50.0
        async with asyncio.timeout(10):
            while await queue.get(job.id) is not None:  # noqa: ASYNC110 - the database does not tell
                await asyncio.sleep(0.01)


# --- being killed


class Witness:
    """What clients and receivers saw over many servers' lives."""

    def __init__(self) -> None:
        self.accepted: dict[str, str] = {}
        self.runs = 0
        self.results: dict[str, set[str]] = collections.defaultdict(set)
        self.delivered: dict[str, list[str]] = collections.defaultdict(list)
        self.drained = False

    def hear(self, what, request_id, value):
        match what:
            case "accepted":
                self.accepted[request_id] = value
            case "ran":
                self.runs += 1
            case "result":
                self.results[request_id].add(value)
            case "delivered":
                self.delivered[request_id].append(value)
            case "drained":
                self.drained = True

    def watch(self, folder, *, kill_after):
        """Run one server: killed after `kill_after` events, or to its end with None."""
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(["tests.support.crashing_queue"])
        ours, its = forks.Pipe(duplex=False)
        process = forks.Process(target=serve, args=(folder, its, list(self.accepted), kill_after is not None))
        process.start()
        its.close()
        with contextlib.suppress(EOFError):
            for heard in itertools.count(1):
                if not ours.poll(30):
                    raise TimeoutError("the server says nothing")
                self.hear(*ours.recv())
                if heard == kill_after:
                    process.kill()
        process.join()
        process.close()


@pytest.mark.long
def test_ten_kills_lose_no_job_and_give_no_job_two_results(tmp_path):
    witness = Witness()
    for life in range(10):
        witness.watch(tmp_path, kill_after=100 + 13 * life)
    witness.watch(tmp_path, kill_after=None)

    assert witness.drained
    assert len(witness.accepted) > 100
    for request_id, seed in witness.accepted.items():
        (result,) = witness.results[request_id]
        assert result.startswith(seed)
        assert {*witness.delivered[request_id]} == {result}


# --- what no step foresaw


@pytest.mark.parametrize("step", ["heartbeat", "claim"])
async def test_a_queue_goes_on_after_a_failure_that_it_did_not_foresee(tmp_path, engines, caplog, step):
    times = QueueTimes(heartbeat=0.01, disk_retry=0.01)
    async with serving(tmp_path, engines, times=times) as queue:
        calls, original = [], getattr(queue._store, step)

        def fail_once(*arguments, **options):
            calls.append(step)
            if len(calls) == 1:
                raise LookupError
            return original(*arguments, **options)

        setattr(queue._store, step, fail_once)
        job = await queue.submit(new())
        await eventually(lambda: len(calls) > 1)

        assert (await ended(queue, job.id)).result_status == 200
    assert "LookupError" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE jobs SET call = '{' WHERE seq = 1",
        "UPDATE jobs SET call = CAST(X'7B80' AS TEXT) WHERE seq = 1",
        "DELETE FROM payloads WHERE job = 1",
    ],
    ids=["call", "no UTF-8", "input"],
)
async def test_a_job_that_can_not_be_read_is_ended_and_the_others_run(tmp_path, engines, damage):
    room = 0
    async with serving(tmp_path, engines, capacity=lambda: room) as queue:
        jobs = [await queue.submit(new(seed=seed)) for seed in range(2)]
        await alter(queue, damage)
        room = 2
        ends = [await ended(queue, job.id) for job in jobs]

    assert [(end.result_status, end.error_type) for end in ends] == [(500, "internal_error"), (200, None)]
    assert engines.begun == [1]


# --- the machine's clock is set


def test_a_process_that_was_frozen_takes_its_own_pause_for_no_change_of_the_clock():
    now = itertools.count(0.0, 60.0)

    assert SteadyClock(lambda: next(now), lambda: next(now)).jump() == 0.0


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
async def test_a_start_timeout_is_as_long_as_it_was_whoever_sets_the_clock(tmp_path, held, set_by):
    clock = Clock()
    async with serving(tmp_path, held, capacity=0, clock=clock, times=QueueTimes(tick=3600.0)) as queue:
        job = await queue.submit(new(start_timeout=10.0))
        clock.set_by = set_by
        clock.now += 9.0
        await queue._tick()
        waits = (await queue.get(job.id)).status
        clock.now += 1.0
        await queue._tick()

        assert await is_a_start_timeout(queue, job)
    assert waits is Status.IN_QUEUE


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
async def test_what_is_stored_as_a_deadline_is_moved_with_the_clock(tmp_path, held, set_by):
    clock, times = Clock(), QueueTimes(tick=3600.0, heartbeat=3600.0)
    async with serving(tmp_path, held, capacity=1, clock=clock, times=times) as queue:
        await queue.submit(new(start_timeout=10.0))
        await held.until(lambda: held.running == 1)
        await queue.submit(new(start_timeout=10.0))
        await queue.submit(new(webhook="http://receiver/hook", result=Result(200, b"{}")))

        def deadlines(connection):
            jobs = connection.exec_driver_sql(
                "SELECT status, start_by, not_before, lease_until FROM jobs WHERE finished_at IS NULL ORDER BY seq"
            ).all()
            return [tuple(job) for job in jobs], connection.exec_driver_sql("SELECT due_at FROM outbox").scalar_one()

        (running, waiting), due_at = await queue._store.database.read(deadlines)
        clock.set_by = set_by
        await queue._tick()
        after = await queue._store.database.read(deadlines)

    moved = [
        (running[0], running[1] + set_by, running[2], running[3] + set_by),
        (waiting[0], waiting[1] + set_by, waiting[2] + set_by, None),
    ]
    assert after == (moved, due_at + set_by)


async def test_a_job_on_its_way_to_the_disk_is_moved_with_the_clock(tmp_path, held):
    clock, going = Clock(), threading.Event()
    async with serving(tmp_path, held, capacity=0, clock=clock, times=QueueTimes(tick=3600.0)) as queue:
        queue._store.database.write(lambda _: going.wait(10))
        submitting = asyncio.create_task(queue.submit(new(start_timeout=10.0)))
        await asyncio.sleep(0)
        clock.set_by = 3600.0
        ticking = asyncio.create_task(queue._tick())
        await asyncio.sleep(0)
        going.set()
        job = await submitting
        await ticking

        assert (await queue.get(job.id)).status is Status.IN_QUEUE
        assert queue._index.overdue(clock() + 9.0) == []


async def test_a_clock_that_is_set_after_a_claim_leaves_the_start_timeout_as_it_was(tmp_path):
    engines, clock = Engines(starts=False), Clock()
    async with serving(tmp_path, engines, clock=clock) as queue:
        claim = queue._store.claim

        def claim_then_set(*arguments, **options):
            claimed = claim(*arguments, **options)
            claimed.add_done_callback(lambda jobs: set_forward() if jobs.result() else None)
            return claimed

        def set_forward():
            clock.set_by = 3600.0
            clock.follow(3600.0)

        queue._store.claim = claim_then_set
        job = await queue.submit(new(start_timeout=60.0))
        await engines.until(lambda: engines.begun == [42])
        engines.go.set()

        assert (await ended(queue, job.id)).result_status == 200


async def test_a_job_that_waits_for_its_next_try_waits_no_hour_longer_when_the_clock_is_set_back(tmp_path, held):
    clock = Clock()
    held.raises = [RequestError("runner_disconnected", "gone")]
    held.go.set()
    async with serving(tmp_path, held, clock=clock) as queue:
        job = await queue.submit(new())
        await held.until(lambda: held.begun == [42] and held.running == 0)
        clock.set_by = -3600.0
        await eventually(lambda: clock() < 0)
        clock.now += 1.0

        assert (await ended(queue, job.id)).result_status == 200


async def test_a_live_workers_lease_does_not_lapse_when_the_clock_is_set_forward(tmp_path, held):
    clock, times = Clock(), QueueTimes(heartbeat=0.01)
    async with serving(tmp_path, held, clock=clock, times=times) as queue:
        job = await queue.submit(new())
        await held.until(lambda: held.running == 1)
        clock.set_by = 3600.0
        await eventually(lambda: clock() > 3600.0)
        held.go.set()

        assert (await ended(queue, job.id)).result_status == 200
    assert (held.begun, held.cancelled) == ([42], [])


async def test_a_clock_that_is_set_back_during_a_heartbeat_lets_no_live_lease_lapse(tmp_path, held):
    async with serving(tmp_path, held, times=QueueTimes(heartbeat=0.01)) as queue:
        renew, beats = queue._store.heartbeat, []

        def renew_and_set_back(*args):
            renewed = renew(*args)
            if len(beats) < 3:
                beats.append(renewed)
                renewed.add_done_callback(lambda _: queue._store.move_deadlines(-3600.0))
            return renewed

        job = await queue.submit(new())
        await held.until(lambda: held.running == 1)
        queue._store.heartbeat = renew_and_set_back
        await eventually(lambda: len(beats) == 3 and beats[-1].done())
        held.go.set()

        assert (await ended(queue, job.id)).result_status == 200
    assert (held.begun, held.cancelled) == ([42], [])


async def test_a_clock_that_is_set_while_nothing_can_be_stored_is_followed_later(tmp_path, held):
    clock = Clock()
    async with serving(tmp_path, held, capacity=0, clock=clock, times=QueueTimes(disk_retry=0.01)) as queue:
        move, failing = queue._store.move_deadlines, [True]

        def fail_once(seconds):
            if failing:
                failing.pop()
                return queue._store.database.write(lambda connection: connection.exec_driver_sql("nonsense"))
            return move(seconds)

        queue._store.move_deadlines = fail_once
        clock.set_by = 3600.0
        await eventually(lambda: clock() > 3600.0 and not failing)
        assert clock.jump() == 0.0

"""Durable jobs: who gets which, who may publish, what survives, what is let go. The same for every form."""

import pytest

from pipelines.messages import Priority
from server.fal.errors import RequestError
from server.jobs.job import LogLine, NewJob, Outcome, Result, Status
from server.jobs.store import GRACE_S, Busy
from tests.jobs.forms import FORMS, LEASE, opened

pytestmark = pytest.mark.anyio

LINE = LogLine(1.0, "INFO", "4 steps")
DONE = Result.success({"seed": 42})
OTHER = Result.success({"seed": 43})


def new(**wishes) -> NewJob:
    return NewJob(**{"app": "fal-ai/lcm-sd15-i2i", "input": b'{"seed":42}', **wishes})


@pytest.fixture(params=FORMS)
async def form(request):
    form = await opened(request.param, request)
    yield form
    await form.close()


@pytest.fixture
def store(form):
    return form.store


async def submitted(store, **wishes) -> str:
    return (await store.submit(new(**wishes))).id


async def claimed(store):
    (job,) = await store.claim(1)
    return job


async def finished(store, result=DONE, **wishes) -> str:
    request_id = await submitted(store, **wishes)
    assert await store.finish(await claimed(store), result, [LINE], 0.1)
    return request_id


async def test_a_job_that_is_submitted_again_is_the_same_job(store):
    wish = new(warning="twice")
    first, again = [await store.submit(wish) for _ in range(2)]

    assert again == first
    assert [job.id for job in await store.claim(9)] == [wish.id]


# --- claiming


async def test_jobs_are_claimed_by_priority_then_in_the_order_of_acceptance(store):
    ids = [await submitted(store, priority=priority) for priority in (Priority.LOW, Priority.NORMAL) * 2]

    jobs = await store.claim(3)

    assert [job.id for job in jobs] == [ids[1], ids[3], ids[0]]


async def test_some_owners_come_after_all_others(store):
    for owner in ("many", "many", "few", "many"):
        await store.submit(new(owner=owner))

    first = await store.claim(2, after_others=["many"])
    rest = await store.claim(9, after_others=["many"])

    assert [job.owner for job in first] == ["many", "few"]
    assert [job.owner for job in rest] == ["many", "many"]


async def test_old_jobs_are_claimed_and_those_behind_them_stay(form, store):
    old = [await submitted(store, priority=priority) for priority in (Priority.LOW, Priority.NORMAL)]
    await form.forward(9.0)
    young = await submitted(store)

    first = await store.claim_old(2, waited_s=5.0)
    second = await store.claim_old(2, waited_s=5.0)

    assert [job.id for job in first] == [old[1]]  # the young one is the next in order, and counts
    assert [job.id for job in second] == [old[0]]
    assert [job.id for job in await store.claim(9)] == [young]


async def test_old_jobs_of_some_owners_stay(form, store):
    for owner in ("many", "few"):
        await store.submit(new(owner=owner))
    await form.forward(9.0)

    assert [job.owner for job in await store.claim_old(9, waited_s=5.0, without=["many"])] == ["few"]


async def test_a_claimed_job_is_what_was_submitted(form, store):
    wish = new(owner="key-1", call={"cdn": "http://h/cdn"}, start_timeout=5.0, no_retry=True)
    await store.submit(wish)
    await form.forward(1.0)

    job = await claimed(store)

    assert (job.id, job.app, job.owner, job.input, job.call) == (wish.id, wish.app, wish.owner, wish.input, wish.call)
    assert (job.attempt, job.start_in, job.no_retry) == (1, pytest.approx(4.0, abs=0.5), True)


async def test_a_claimed_job_is_not_claimed_by_another_worker(form, store):
    await submitted(store)
    await claimed(store)

    assert await form.worker().claim(1) == []


async def test_a_released_job_gets_its_old_place_but_not_before_its_time(form, store):
    first, second = [await submitted(store) for _ in range(2)]
    await store.release(await claimed(store), refund=False, delay_s=5.0)

    early = await store.claim(2)
    await form.forward(6.0)
    late = await store.claim(2)

    assert [job.id for job in early] == [second]
    assert [(job.id, job.attempt) for job in late] == [(first, 2)]


async def test_a_refunded_try_does_not_count(store):
    await submitted(store)
    await store.release(await claimed(store), refund=True, delay_s=0.0)

    assert (await claimed(store)).attempt == 1


# --- leases and fences


async def test_a_lease_that_is_not_renewed_lapses(form, store):
    kept, lost = [await submitted(store) for _ in range(2)]
    running = [await claimed(store)]
    await claimed(form.worker())
    await form.forward(LEASE - 10)
    await store.heartbeat(running)
    await form.forward(11)

    assert await store.heartbeat(running) == ({kept: 1}, [lost])
    assert await store.heartbeat(running) == ({kept: 1}, [])


async def test_a_worker_that_was_frozen_past_its_lease_keeps_its_jobs(form, store):
    kept = await submitted(store)
    running = [await claimed(store)]
    await form.forward(LEASE + 1)

    assert await store.heartbeat(running) == ({kept: 1}, [])


async def test_a_claim_whose_answer_was_lost_is_released_and_costs_no_try(form, store):
    known, unheard = [await submitted(store) for _ in range(2)]
    running = [await claimed(store)]
    await claimed(store)
    young = await store.heartbeat(running)
    await form.forward(GRACE_S + 1)

    assert young == ({known: 1}, [])
    assert await store.heartbeat(running) == ({known: 1}, [unheard])
    again = await claimed(form.worker())
    assert (again.id, again.attempt, again.fence) == (unheard, 1, 2)


async def two_workers_publish(form, *kind) -> list[bool]:
    """A worker freezes past its lease, another takes the job and publishes; the first wakes up and publishes too."""
    first, second = form.worker(*kind), form.worker(*kind)
    await submitted(first, webhook="http://receiver/hook")
    frozen = await claimed(first)
    await form.forward(LEASE + 1)
    await second.heartbeat(())
    successor = await claimed(second)
    return [await second.finish(successor, DONE, [], 0.1), await first.finish(frozen, OTHER, [], 0.1)]


async def test_a_worker_back_from_the_dead_cannot_publish(form):
    assert await two_workers_publish(form) == [True, False]
    assert len(await form.outbox.due(10)) == 1


async def test_a_result_that_is_published_again_is_published(form, store):
    request_id = await submitted(store, webhook="http://receiver/hook")
    job = await claimed(store)

    assert [await store.finish(job, result, [], 0.1) for result in (DONE, OTHER)] == [True, True]
    assert not await form.worker().finish(job, OTHER, [], 0.1)
    assert await store.result(request_id) == DONE
    assert len(await form.outbox.due(10)) == 1


async def test_a_worker_that_lost_its_job_cannot_publish_while_another_runs_it(form, store):
    request_id = await submitted(store)
    frozen, other = await claimed(store), form.worker()
    await form.forward(LEASE + 1)
    await other.heartbeat(())
    await claimed(other)

    assert not await store.finish(frozen, OTHER, [], 0.1)
    assert await store.result(request_id) is None


# --- the end


async def test_a_result_is_kept_as_it_was_given(store):
    failure = Result.failure(RequestError("runner_server_error", "the engine failed"))

    request_id = await finished(store, result=failure)

    assert await store.result(request_id) == failure


async def test_a_finished_job_is_read_back_with_its_log(store):
    request_id = await finished(store)

    snapshot = await store.load(request_id)

    assert (snapshot.status, snapshot.logs, snapshot.inference_time) == (Status.COMPLETED, (LINE,), 0.1)


async def test_a_job_may_be_born_with_its_result(form, store):
    snapshot = await store.submit(new(result=DONE, webhook="http://receiver/hook"))

    assert snapshot.status is Status.COMPLETED
    assert await store.result(snapshot.id) == DONE
    assert [webhook.request_id for webhook in await form.outbox.due(10)] == [snapshot.id]


async def test_what_waits_past_its_start_timeout_is_ended_but_what_runs_is_not(form, store):
    running, late = [await submitted(store, start_timeout=5.0) for _ in range(2)]
    patient = await submitted(store, start_timeout=50.0)
    await claimed(store)
    early = await store.end_overdue(OTHER)
    await form.forward(6.0)

    assert (early, await store.end_overdue(OTHER), await store.end_overdue(OTHER)) == ([], [late], [])
    assert [await store.result(which) for which in (running, late, patient)] == [None, OTHER, None]


async def test_a_cancel_has_four_outcomes(store):
    running, waiting = [await submitted(store) for _ in range(2)]
    job = await claimed(store)

    outcomes = [await store.cancel(which, [LINE]) for which in (running, waiting, running, "unknown")]

    assert outcomes == [Outcome.REQUESTED, Outcome.REMOVED, Outcome.ALREADY_COMPLETED, Outcome.NOT_FOUND]
    assert [(await store.result(which)).status for which in (running, waiting)] == [499, 499]
    assert not await store.finish(job, DONE, [], 0.1)


# --- after the end of a server


async def test_a_new_server_knows_every_job_and_runs_only_what_had_not_finished(form, store):
    done = await finished(store)
    low = await submitted(store, priority=Priority.LOW)
    running, waiting = [await submitted(store) for _ in range(2)]
    await claimed(store)
    await form.reopen()

    assert await form.unfinished() == [running, waiting, low]
    assert [(job.id, job.attempt) for job in await form.store.claim(10)] == [(running, 2), (waiting, 1), (low, 1)]
    assert await form.store.result(done) == DONE


# --- the log


WARNING = LogLine(0.0, "WARN", "the webhook is not sent")


def worded(lines):
    return [line.message for line in lines]


async def logged(store, request_id):
    return (await store.load(request_id)).logs


async def test_the_warning_of_a_submit_is_stored_with_it_and_found_after_a_restart(form, store):
    job = await submitted(store, warning=WARNING.message)
    stored = await logged(store, job)
    await form.reopen()

    assert stored == await logged(form.store, job)
    assert worded(stored) == [WARNING.message]


@pytest.mark.parametrize("known", [(WARNING, LINE), ()], ids=["whole", "unknown"])
async def test_the_lines_of_a_run_come_after_the_warning(store, known):
    ran = await submitted(store, warning=WARNING.message)
    assert await store.finish(await claimed(store), DONE, known, 0.1)
    gone = await submitted(store, warning=WARNING.message)
    await store.cancel(gone, known)

    assert worded(await logged(store, ran)) == worded(await logged(store, gone)) == worded(known or (WARNING,))


async def test_a_job_that_ends_while_it_waits_keeps_its_warning(form, store):
    waited = await submitted(store, warning=WARNING.message, start_timeout=1.0)
    invalid = await submitted(store, warning=WARNING.message, result=DONE)
    await form.forward(2.0)
    assert await store.end_overdue(DONE) == [waited]

    assert worded(await logged(store, waited)) == worded(await logged(store, invalid)) == [WARNING.message]


# --- the outbox


async def test_due_webhooks_skip_those_in_flight_and_busy_receivers(form, store):
    for port in (1, 1, 2):
        await finished(store, webhook=f"http://user:pw@receiver:{port}/hook?id=1")
    first, second, third = await form.outbox.due(10)

    assert [webhook.origin for webhook in (first, third)] == ["http://receiver:1", "http://receiver:2"]
    assert await form.outbox.due(10, Busy([first.id])) == [second, third]
    assert await form.outbox.due(10, Busy(origins=["http://receiver:1"])) == [third]
    assert await form.outbox.next_due_in(Busy([third.id], ["http://receiver:1"])) is None


async def test_a_failed_delivery_waits_for_its_next_turn(form, store):
    await finished(store, webhook="http://receiver/hook")
    (webhook,) = await form.outbox.due(10)
    await form.outbox.failed(webhook, 50.0)

    await form.forward(49.0)
    assert await form.outbox.due(10) == []
    assert await form.outbox.next_due_in() == pytest.approx(1.0, abs=0.5)
    await form.forward(1.0)
    assert [again.attempts for again in await form.outbox.due(10)] == [1]

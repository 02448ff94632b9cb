"""Two servers do something to the same jobs at once: one of them wins, both know who, and nothing is done twice.

Each pair of operations runs at once for many jobs, on connections of its own. The controls are statements as they must
not be written.
"""

import asyncio
import itertools
import uuid

import asyncpg
import msgspec
import pytest

from server.jobs.job import Outcome, Status
from server.jobs.postgres.connection import Statement
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.statements import CLAIM
from server.jobs.postgres.store import PostgresStore
from tests.jobs.forms import LEASE
from tests.jobs.test_store import DONE, OTHER, new, submitted, two_workers_publish

pytestmark = pytest.mark.anyio

MANY = 60
HOOK = "http://receiver/hook"


class Unfenced(PostgresStore):
    """The control: publishes whoever has the job now, and also when it has ended."""

    async def _finish(self, job, *end):
        reopen = Statement("reopen", "UPDATE jobs SET status = 'IN_PROGRESS' WHERE seq = $1 RETURNING fence")
        ((fence,),) = await self.pool.fetch(reopen, job.seq)
        return await super()._finish(msgspec.structs.replace(job, fence=fence), *end)


@pytest.fixture
async def two(form):
    """Two servers on one database, each with its connections."""
    pools = [Pool(form.cluster.url(form.name)) for _ in range(2)]
    yield [PostgresStore(pool, form.outside, node=uuid.uuid4().hex, lease_s=LEASE) for pool in pools]
    for pool in pools:
        await pool.close()


async def at_once(left, right, things):
    """Return what the two operations answer for each thing, all of them at once; who asks first takes turns."""

    async def pair(turn, thing):
        if turn % 2:
            second, first = await asyncio.gather(right(thing), left(thing))
            return first, second
        return tuple(await asyncio.gather(left(thing), right(thing)))

    return await asyncio.gather(*(pair(turn, thing) for turn, thing in enumerate(things)))


async def claimed_by(store, count=MANY):
    jobs = await store.claim(count)
    assert len(jobs) == count
    return jobs


async def webhooks(form):
    return await form.fetch("SELECT count(*), count(DISTINCT job) FROM outbox")


async def test_one_job_submitted_twice_at_once_is_one(form, two):
    wishes = [new() for _ in range(MANY)]

    answers = await at_once(two[0].submit, two[1].submit, wishes)

    assert all(left == right for left, right in answers)
    assert [first.id for first, _ in answers] == [wish.id for wish in wishes]
    assert await form.fetch("SELECT count(*) FROM jobs") == await form.fetch("SELECT count(*) FROM payloads")
    assert await form.fetch("SELECT count(*) FROM jobs") == [(MANY,)]


async def test_no_job_is_claimed_twice(two):
    ids = {await submitted(two[0]) for _ in range(MANY)}

    answers = await at_once(lambda _: two[0].claim(3), lambda _: two[1].claim(3), range(MANY))

    claimed = [job.id for pair in answers for jobs in pair for job in jobs]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == ids
    assert max(len(jobs) for pair in answers for jobs in pair) <= 3


async def test_a_cancel_beside_a_claim_lets_no_job_both_run_and_be_removed(two):
    ids = [await submitted(two[0]) for _ in range(MANY)]

    answers = await at_once(lambda each: two[0].cancel(each, []), lambda _: two[1].claim(1), ids)

    outcomes = dict(zip(ids, (outcome for outcome, _ in answers), strict=True))
    running = [job for _, jobs in answers for job in jobs]
    assert {outcomes[job.id] for job in running} <= {Outcome.REQUESTED}
    assert list(outcomes.values()).count(Outcome.REQUESTED) == len(running)
    assert not any(await asyncio.gather(*(two[1].finish(job, DONE, [], 0.1) for job in running)))
    assert {(await two[0].result(each)).status for each in ids} == {499}


async def test_a_finish_beside_a_cancel_gives_one_end_and_one_webhook(form, two):
    for _ in range(MANY):
        await submitted(two[0], webhook=HOOK)
    jobs = await claimed_by(two[0])

    answers = await at_once(lambda job: two[0].finish(job, DONE, [], 0.1), lambda job: two[1].cancel(job.id, []), jobs)

    assert {(mine, outcome) for mine, outcome in answers} <= {
        (True, Outcome.ALREADY_COMPLETED),
        (False, Outcome.REQUESTED),
    }
    for (mine, _), job in zip(answers, jobs, strict=True):
        assert (await two[0].result(job.id)).status == (200 if mine else 499)
    assert await webhooks(form) == [(MANY, MANY)]


async def test_two_cancels_at_once_are_one(form, two):
    ids = [await submitted(two[0], webhook=HOOK) for _ in range(MANY)]

    answers = await at_once(lambda each: two[0].cancel(each, []), lambda each: two[1].cancel(each, []), ids)

    assert {frozenset(pair) for pair in answers} == {frozenset({Outcome.REMOVED, Outcome.ALREADY_COMPLETED})}
    assert await webhooks(form) == [(MANY, MANY)]


async def lapsed_and_claimed_again(form, two):
    for _ in range(MANY):
        await submitted(two[0], webhook=HOOK)
    stale = await claimed_by(two[0])
    await form.forward(LEASE + 1)
    await two[1].heartbeat(())
    return list(zip(stale, await claimed_by(two[1]), strict=True))


async def test_of_two_finishes_only_that_of_the_latest_claim_counts(form, two):
    jobs = await lapsed_and_claimed_again(form, two)

    answers = await at_once(
        lambda pair: two[0].finish(pair[0], OTHER, [], 0.1), lambda pair: two[1].finish(pair[1], DONE, [], 0.1), jobs
    )

    assert set(answers) == {(False, True)}
    assert {(await two[0].result(job.id)).body for job, _ in jobs} == {DONE.body}
    assert await webhooks(form) == [(MANY, MANY)]


async def test_a_finish_that_is_repeated_at_once_is_one(form, two):
    for _ in range(MANY):
        await submitted(two[0], webhook=HOOK)

    def finish(job):
        return two[0].finish(job, DONE, [], 0.1)

    assert {right or left for left, right in await at_once(finish, finish, await claimed_by(two[0]))} == {True}
    assert await webhooks(form) == [(MANY, MANY)]


async def test_a_lapsed_job_is_published_or_waits_again(form, two):
    for _ in range(MANY):
        await submitted(two[0])
    jobs = await claimed_by(two[0])
    await form.forward(LEASE + 1)

    answers = await at_once(lambda job: two[0].finish(job, DONE, [], 0.1), lambda _: two[1].heartbeat(()), jobs)

    requeued = [each for _, held in answers for each in held.requeued]
    published = [job.id for job, (mine, _) in zip(jobs, answers, strict=True) if mine]
    assert sorted(requeued + published) == sorted(job.id for job in jobs)


async def test_a_lapsed_job_waits_again_once_however_many_look(form, two):
    for _ in range(MANY):
        await submitted(two[0])
    jobs = await claimed_by(two[0])
    await form.forward(LEASE + 1)
    third = form.worker()

    answers = await at_once(lambda _: two[1].heartbeat(()), lambda _: third.heartbeat(()), range(10))

    requeued = [each for pair in answers for held in pair for each in held.requeued]
    assert sorted(requeued) == sorted(job.id for job in jobs)


async def test_renewals_and_lapses_at_once_end_without_a_deadlock(form, two):
    for _ in range(MANY):
        await submitted(two[0])
    jobs = await claimed_by(two[0])
    await form.forward(LEASE + 1)

    answers = await at_once(lambda _: two[0].heartbeat(jobs), lambda _: two[1].heartbeat(()), range(10))

    kept, lost = (sum(len(held[number]) for held in itertools.chain(*answers[:1])) for number in range(2))
    assert kept + lost >= MANY
    deadlocks = await form.fetch("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert [row[0] for row in deadlocks] == [0]


async def test_a_released_job_is_claimed_with_the_next_fence_or_not_yet(two):
    for _ in range(MANY):
        await submitted(two[0])
    jobs = await claimed_by(two[0])

    answers = await at_once(lambda job: two[0].release(job, refund=True, delay_s=0.0), lambda _: two[1].claim(1), jobs)

    assert {released for released, _ in answers} == {True}
    assert {(job.fence, job.attempt) for _, claimed in answers for job in claimed} <= {(2, 1)}


async def test_a_release_beside_a_cancel_never_brings_a_job_back(two):
    for _ in range(MANY):
        await submitted(two[0])
    jobs = await claimed_by(two[0])

    answers = await at_once(
        lambda job: two[0].release(job, refund=True, delay_s=0.0), lambda job: two[1].cancel(job.id, []), jobs
    )

    assert {(True, Outcome.REMOVED), (False, Outcome.REQUESTED)} >= set(answers)
    assert {(await two[0].load(job.id)).status for job in jobs} == {Status.COMPLETED}


async def test_an_overdue_job_is_ended_or_claimed(form, two):
    ids = [await submitted(two[0], start_timeout=1.0) for _ in range(MANY)]
    await form.forward(2.0)

    answers = await at_once(lambda _: two[0].end_overdue(OTHER), lambda _: two[1].claim(1), range(MANY))

    ended = [each for gone, _ in answers for each in gone]
    running = [job.id for _, claimed in answers for job in claimed]
    assert sorted(ended + running) == sorted(ids)


async def test_a_result_expires_once(form, two):
    for _ in range(MANY):
        await submitted(two[0])
    jobs = await claimed_by(two[0])
    await asyncio.gather(*(two[0].finish(job, DONE, [], 0.1) for job in jobs))

    answers = await at_once(lambda _: two[0].expire(0.0, 7), lambda _: two[1].expire(0.0, 7), range(MANY))

    expired = [each for pair in answers for gone in pair for each in gone]
    assert sorted(expired) == sorted(job.id for job in jobs)


async def test_a_webhook_goes_to_one_server(form, two):
    ids = [await submitted(two[0], webhook=HOOK, result=DONE) for _ in range(MANY)]
    boxes = [form.outbox_of(store) for store in two]

    answers = await at_once(lambda _: boxes[0].due(5), lambda _: boxes[1].due(5), range(1))
    given = [webhook.request_id for pair in answers for due in pair for webhook in due]

    assert len(given) == len(set(given)) == 10
    assert set(given) <= set(ids)


# --- controls


@pytest.mark.parametrize(("skips", "claimed"), [(True, 2), (False, None)], ids=["shipped", "control"])
async def test_a_claim_passes_by_what_another_is_taking_only_by_skip_locked(form, two, skips, claimed):
    first, *_ = [await submitted(two[0]) for _ in range(3)]
    claim = CLAIM if skips else Statement("claim", CLAIM.text.replace(" SKIP LOCKED", ""))
    connection = await asyncpg.connect(form.cluster.url(form.name))
    async with connection.transaction():
        await connection.execute("SELECT FROM jobs WHERE id = $1 FOR UPDATE", first)
        claiming = two[1].pool.write(two[1].pool.fetch(claim, 3, two[1].node, LEASE, []))
        await asyncio.wait([claiming], timeout=1.0)
        found = len(claiming.result()) if claiming.done() else None
    await claiming
    await connection.close()

    assert found == claimed


async def test_control_a_claim_by_subquery_takes_more_than_it_was_asked_for(form, two, monkeypatch):
    for _ in range(5):
        await submitted(two[0])
    for setting in ("enable_hashjoin", "enable_mergejoin", "enable_hashagg", "enable_sort", "enable_material"):
        await form.execute(f"ALTER DATABASE {form.name} SET {setting} = off")
    picked = CLAIM.text.partition("MATERIALIZED (")[2].partition(")\n")[0]
    control = CLAIM.text.partition("\n")[2].partition("UPDATE jobs SET")[2]
    text = "UPDATE jobs SET" + control.partition("FROM picked")[0]
    returning = "RETURNING" + control.partition("RETURNING")[2].replace("input, input_object", "NULL, NULL")

    shipped = await two[0].claim(1)
    by_subquery = Statement("claim", f"{text} WHERE seq IN ({picked}) {returning}")
    rows = await two[1].pool.fetch(by_subquery, 1, two[1].node, LEASE, [])

    assert (len(shipped), len(rows) > 1) == (1, True)


async def test_control_without_the_fence_there_are_two_results(form):
    assert await two_workers_publish(form, Unfenced) == [True, True]
    assert await webhooks(form) == [(2, 1)]

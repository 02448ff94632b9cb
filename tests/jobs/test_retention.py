"""What is let go of finished jobs: by age, by disk quota, on delivery. The same for every form of the store."""

import contextlib
from types import SimpleNamespace

import pytest

from server.fal.errors import RequestError
from server.jobs.job import Result
from server.jobs.retention import FRESH_S, Retention
from server.settings import Settings
from tests.jobs.test_store import DONE, claimed, finished, form, new, store, submitted

__all__ = ["form", "store"]  # fixtures

pytestmark = pytest.mark.anyio


class Expiring:
    """A retention, and the request ids that it has forgotten."""

    def __init__(self, store, *, mine=True, **settings) -> None:
        self.forgotten = []
        chosen = Settings(**{"result_ttl": 5.0, "tombstone_ttl": 1e9, **settings})
        options = {"key_share": chosen.key_share, "chore": lambda _: contextlib.nullcontext(mine)}
        self.retention = Retention(store, self.forgotten.extend, chosen, **options)


async def test_results_expire_by_age_and_leave_a_tombstone(form, store):
    old = await finished(store)
    await form.forward(10.0)
    young = await finished(store)
    expiring = Expiring(store)
    await expiring.retention.expire()

    assert expiring.forgotten == [old]
    assert await store.result(old) is None
    assert (await store.load(old)).expired
    assert await store.result(young) == DONE


async def test_what_another_server_lets_go_this_one_leaves_to_it(form, store):
    await finished(store, result=Result(200, b"x" * 3_000_000))
    await form.forward(FRESH_S + 1)
    expiring = Expiring(store, mine=False, jobs_quota_bytes=1_000_000)
    await expiring.retention.expire()
    await expiring.retention.keep_quota()

    assert expiring.forgotten == []
    assert [is_refused(expiring, owner) for owner in ("", "another")] == [True, False]


async def test_a_tombstone_is_forgotten_in_its_time(form, store):
    request_id = await finished(store)
    expiring = Expiring(store, tombstone_ttl=15.0)
    await form.forward(10.0)
    await expiring.retention.expire()
    assert (await store.load(request_id)).expired
    await form.forward(10.0)
    await expiring.retention.expire()

    assert await store.load(request_id) is None


async def test_a_result_is_kept_until_its_webhook_is_out(form, store):
    request_id = await finished(store, webhook="http://receiver/hook")
    (webhook,) = await form.outbox.due(10)
    expiring = Expiring(store)
    await form.forward(1e6)

    await expiring.retention.expire()
    assert expiring.forgotten == []
    await form.outbox.done(webhook)
    await expiring.retention.expire()
    assert expiring.forgotten == [request_id]


async def test_a_private_job_is_forgotten_on_delivery_and_any_at_its_owners_wish(store):
    private, other = await finished(store, store_io=False), await finished(store)
    expiring = Expiring(store)
    await expiring.retention.forget(private)
    await expiring.retention.delete(other)
    await expiring.retention.keep_quota()

    assert expiring.forgotten == [private, other]
    assert [await store.result(which) for which in (private, other)] == [None, None]
    assert all([(await store.load(which)).expired for which in (private, other)])


async def test_only_private_jobs_are_forgotten_on_delivery(store):
    request_id = await finished(store)
    expiring = Expiring(store)
    await expiring.retention.forget(request_id)

    assert expiring.forgotten == []
    assert await store.result(request_id) == DONE


async def test_a_job_that_has_not_ended_is_not_deleted(store):
    request_id = await submitted(store)
    expiring = Expiring(store)
    await expiring.retention.delete(request_id)

    assert expiring.forgotten == []
    assert (await claimed(store)).id == request_id


async def test_over_the_quota_old_results_of_the_heaviest_owner_go_first(form, store):
    few = await finished(store, owner="few", result=Result(200, b"x" * 1_000_000))
    many = [await finished(store, owner="many", result=Result(200, b"x" * 1_000_000)) for _ in range(2)]
    expiring = Expiring(store, jobs_quota_bytes=2_000_000)
    await form.forward(FRESH_S + 20)
    await expiring.retention.keep_quota()
    await expiring.retention.keep_quota()

    assert sorted(expiring.forgotten) == sorted(many)
    assert await store.result(few) is not None


async def test_of_one_owners_results_the_oldest_go_first_and_of_one_time_the_first_accepted(form, store):
    ids = [await submitted(store, owner=owner) for owner in "abaa"]
    jobs = await store.claim(4)
    for job in (jobs[2], jobs[3], jobs[1], jobs[0]):
        assert await store.finish(job, DONE, [], 0.1)
        await form.forward(1.0)

    assert await store.expire(0.0, 2, "a") == ids[2:]
    assert await store.expire(0.0, 9, "a") == ids[:1]


@pytest.mark.parametrize(
    ("age", "quota", "refused"),
    [
        (FRESH_S, 1_900_000, ["many"]),
        (FRESH_S - 1, 2_500_000, ["many"]),
        (FRESH_S - 1, 1_900_000, ["few", "none yet", "many"]),
    ],
)
async def test_over_the_quota_the_heaviest_owner_is_refused_and_all_at_twice_of_it_with_nothing_old_left(
    form, store, age, quota, refused
):
    await finished(store, owner="few")
    await form.forward(age)
    await finished(store, owner="many", result=Result(200, b"x" * 2_500_000))
    await submitted(store, owner="many", input=b"x" * 1_500_000)
    expiring = Expiring(store, jobs_quota_bytes=quota)
    await expiring.retention.keep_quota()

    assert [owner for owner in ("few", "none yet", "many") if is_refused(expiring, owner)] == refused


def is_refused(expiring, owner, **wishes):
    try:
        expiring.retention.admit(new(owner=owner, **wishes))
    except RequestError as error:
        return error.status == 429
    return False


def test_inputs_count_from_their_admission_on():
    expiring = Expiring(SimpleNamespace(), jobs_quota_bytes=2_000_000)
    large = {"input": b"x" * 900_000, "max_owned_bytes": 1_000_000}

    first, second = (is_refused(expiring, "many", **large) for _ in range(2))
    others = [is_refused(expiring, owner, **large) for owner in ("one", "two", "three")]

    assert (first, second, others) == (False, True, [False, False, True])


@pytest.mark.parametrize("running", [0, 1])
async def test_a_keys_unfinished_inputs_take_no_more_than_its_share(store, running):
    for _ in range(2):
        await submitted(store, owner="many", input=b"x" * 500_000)
    if running:
        await claimed(store)
    expiring = Expiring(store, jobs_quota_bytes=2_000_000, key_share=0.5)
    await expiring.retention.keep_quota()

    expiring.retention.admit(new(owner="few", max_owned_bytes=1_000_000))
    with pytest.raises(RequestError, match="share") as caught:
        expiring.retention.admit(new(owner="many", max_owned_bytes=1_000_000))

    assert caught.value.status == 429


async def test_inputs_that_wait_are_all_together_no_more_than_the_quota(store):
    for owner in ("one", "two", "three"):
        await submitted(store, owner=owner, input=b"x" * 1_000_000)
    expiring = Expiring(store, jobs_quota_bytes=2_000_000)
    await expiring.retention.keep_quota()

    with pytest.raises(RequestError, match="wait"):
        expiring.retention.admit(new(owner="four"))

"""What is let go of finished jobs: by age, by disk quota, on delivery."""

from types import SimpleNamespace

import pytest

from server.fal.errors import RequestError
from server.jobs import schema
from server.jobs.job import Result
from server.jobs.retention import FRESH_S, Retention
from server.settings import Settings
from server.webhooks.outbox import Outbox
from tests.jobs.test_store import DONE, claimed, finished, new, path, store, submitted

__all__ = ["path", "store"]  # fixtures

pytestmark = pytest.mark.anyio


class Expiring:
    """A retention, the clock that it goes by, and the request ids that it has forgotten."""

    def __init__(self, store, now=15.0, **settings) -> None:
        self.now = now
        self.forgotten = []
        chosen = Settings(**{"result_ttl": 0.0, "tombstone_ttl": 1e9, **settings})
        self.retention = Retention(
            store.database, self.forgotten.extend, chosen, key_share=chosen.key_share, clock=lambda: self.now
        )


async def test_results_expire_by_age_and_leave_a_tombstone(store):
    old, young = await finished(store, now=10.0), await finished(store, now=20.0)
    expiring = Expiring(store)
    await expiring.retention.expire()

    assert expiring.forgotten == [old]
    assert await store.result(old) is None
    assert (await store.load(old)).expired
    assert await store.result(young) == DONE


async def test_a_tombstone_is_forgotten_in_its_time(store):
    request_id = await finished(store, now=10.0)
    expiring = Expiring(store, tombstone_ttl=10.0)
    await expiring.retention.expire()
    assert (await store.load(request_id)).expired
    expiring.now = 25.0
    await expiring.retention.expire()

    assert await store.load(request_id) is None


async def test_a_result_is_kept_until_its_webhook_is_out(store):
    request_id = await finished(store, webhook="http://receiver/hook")
    outbox = Outbox(store.database)
    (webhook,) = await outbox.due(100.0, 10)
    expiring = Expiring(store, now=1e8)

    await expiring.retention.expire()
    assert expiring.forgotten == []
    await outbox.done(webhook)
    await expiring.retention.expire()
    assert expiring.forgotten == [request_id]


@pytest.mark.parametrize(("input_size", "output_size"), [(40_000, 9_000), (9_000, 40_000), (50, 50)])
async def test_nothing_of_a_private_job_is_left_on_disk(path, store, input_size, output_size):
    output = Result(200, b"canary-" * (output_size // 7))
    given = {"input": b"canary-" * (input_size // 7), "call": {"wish": "canary-"}}
    request_id = await finished(store, result=output, store_io=False, **given)
    expiring = Expiring(store)
    await expiring.retention.forget(request_id)
    await expiring.retention.keep_quota()

    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"canary-" not in left
    assert expiring.forgotten == [request_id]
    assert (await store.load(request_id)).expired


async def test_only_private_jobs_are_forgotten_on_delivery(store):
    request_id = await finished(store)
    expiring = Expiring(store)
    await expiring.retention.forget(request_id)

    assert expiring.forgotten == []
    assert await store.result(request_id) == DONE


@pytest.mark.parametrize("webhook", [None, "http://receiver/hook"])
async def test_nothing_of_a_deleted_job_is_left_on_disk(path, store, webhook):
    request_id = await finished(store, result=Result(200, b"canary-" * 5000), webhook=webhook)
    expiring = Expiring(store)
    await expiring.retention.delete(request_id)
    await expiring.retention.keep_quota()

    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"canary-" not in left
    assert expiring.forgotten == [request_id]
    assert await store.result(request_id) is None
    assert (await store.load(request_id)).expired


async def test_a_job_that_has_not_ended_is_not_deleted(store):
    request_id = await submitted(store)
    expiring = Expiring(store)
    await expiring.retention.delete(request_id)

    assert expiring.forgotten == []
    assert (await claimed(store)).id == request_id


async def test_over_the_quota_old_payloads_give_their_disk_back(path, store):
    await finished(store, result=Result(200, b"x" * 4_000_000))
    expiring = Expiring(store, now=FRESH_S + 20.0, jobs_quota_bytes=1_000_000)
    full = await store.database.used_bytes()
    await expiring.retention.keep_quota()
    await store.database.empty_log()

    assert await store.database.used_bytes() < full - 4_000_000
    assert path.stat().st_size < full - 4_000_000


async def test_over_the_quota_old_results_of_the_heaviest_owner_go_first(store):
    few = await finished(store, now=5.0, owner="few", result=Result(200, b"x" * 1_000_000))
    many = [await finished(store, now=at, owner="many", result=Result(200, b"x" * 1_000_000)) for at in (6.0, 7.0)]
    expiring = Expiring(store, now=FRESH_S + 20.0, jobs_quota_bytes=2_000_000)
    await expiring.retention.keep_quota()
    await expiring.retention.keep_quota()

    assert sorted(expiring.forgotten) == sorted(many)
    assert await store.result(few) is not None


async def test_of_one_owners_results_the_oldest_go_first_and_of_one_time_the_first_accepted(store):
    ids = [await finished(store, now=at, owner=owner) for at, owner in zip((7, 6, 5, 5), "abaa", strict=True)]

    def oldest(connection):
        which = {"before": 10.0, "owned_by": "a", "count": 2}
        return [row.id for row in connection.execute(schema.OLD_RESULTS_OF, which)]

    assert await store.database.read(oldest) == ids[2:]
    assert "ORDER BY jobs.finished_at, jobs.seq" in str(schema.OLD_RESULTS_OF)


@pytest.mark.parametrize(
    ("age", "quota", "refused"),
    [
        (FRESH_S, 1_900_000, ["many"]),
        (FRESH_S - 1, 2_500_000, ["many"]),
        (FRESH_S - 1, 1_900_000, ["few", "none yet", "many"]),
    ],
)
async def test_over_the_quota_the_heaviest_owner_is_refused_and_all_at_twice_of_it_with_nothing_old_left(
    store, age, quota, refused
):
    await finished(store, owner="few", now=10.0 + age)
    await finished(store, owner="many", result=Result(200, b"x" * 2_500_000))
    await submitted(store, owner="many", input=b"x" * 1_500_000)
    expiring = Expiring(store, now=10.0 + age, jobs_quota_bytes=quota)
    await expiring.retention.keep_quota()

    assert [owner for owner in ("few", "none yet", "many") if is_refused(expiring, owner)] == refused


def is_refused(expiring, owner, **wishes):
    try:
        expiring.retention.admit(new(owner=owner, **wishes))
    except RequestError as error:
        return error.status == 429
    return False


def test_inputs_count_from_their_admission_on():
    expiring = Expiring(SimpleNamespace(database=None), jobs_quota_bytes=2_000_000)
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
    expiring = Expiring(store, now=20.0, jobs_quota_bytes=2_000_000, key_share=0.5)
    await expiring.retention.keep_quota()

    expiring.retention.admit(new(owner="few", max_owned_bytes=1_000_000))
    with pytest.raises(RequestError, match="share") as caught:
        expiring.retention.admit(new(owner="many", max_owned_bytes=1_000_000))

    assert caught.value.status == 429


async def test_inputs_that_wait_are_all_together_no_more_than_the_quota(store):
    for owner in ("one", "two", "three"):
        await submitted(store, owner=owner, input=b"x" * 1_000_000)
    expiring = Expiring(store, now=20.0, jobs_quota_bytes=2_000_000)
    await expiring.retention.keep_quota()

    with pytest.raises(RequestError, match="wait"):
        expiring.retention.admit(new(owner="four"))

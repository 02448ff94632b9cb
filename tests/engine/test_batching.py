"""Which requests join the device and which images share a step."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine import batching
from pipelines.messages import AGEING_S, Priority

LIMIT = 8
NOW = 100.0


@dataclass(eq=False)
class Candidate:
    priority: Priority = Priority.RUN
    tenant: str = "a"
    arrived: float = NOW
    rows: int = 1
    shape: str = "square"


def candidates(**fixed):
    free = {
        "priority": st.sampled_from(Priority),
        "tenant": st.sampled_from("abc"),
        "arrived": st.floats(NOW - 20, NOW),
        "rows": st.sampled_from([1, 2, 8, 16]),
        "shape": st.sampled_from(["square", "wide"]),
    }
    return st.lists(st.builds(Candidate, **{**free, **fixed}), max_size=24)


def urgency(candidate):
    return batching.level(candidate, NOW)


def between_tenants(candidate):
    return Priority.between_tenants(urgency(candidate))


def rows(requests):
    return sum(request.rows for request in requests)


@given(waiting=candidates(tenant=st.just("a")), active=candidates(tenant=st.just("a")))
def test_each_admitted_request_found_room_among_those_at_least_as_urgent(waiting, active):
    chosen = batching.admissible(waiting, active, LIMIT, NOW)

    for number, request in enumerate(chosen):
        ahead = [*active, *chosen[:number]]
        assert rows(other for other in ahead if urgency(other) <= urgency(request)) < LIMIT


@given(waiting=candidates(), active=candidates())
def test_the_tenant_of_a_request_that_joins_a_full_device_had_less_than_an_equal_share_of_it(waiting, active):
    chosen = batching.admissible(waiting, active, LIMIT, NOW)

    tenants = {request.tenant for request in [*waiting, *active]}
    for number, request in enumerate(chosen):
        ahead = [*active, *chosen[:number]]
        own = rows(other for other in ahead if other.tenant == request.tenant)
        urgent = rows(other for other in ahead if urgency(other) <= urgency(request))
        assert urgent < LIMIT or (own < LIMIT // len(tenants) and urgent < 2 * LIMIT)


@given(waiting=candidates(), active=candidates())
def test_no_request_is_left_out_which_is_more_urgent_than_one_admitted(waiting, active):
    chosen = batching.admissible(waiting, active, LIMIT, NOW)

    left = [request for request in waiting if request not in chosen]
    assert max(map(between_tenants, chosen), default=0) <= min(map(between_tenants, left), default=len(Priority))


@given(waiting=candidates())
def test_an_idle_device_takes_the_most_urgent_request_at_once(waiting):
    chosen = batching.admissible(waiting, [], LIMIT, NOW)

    assert [urgency(request) for request in chosen[:1]] == sorted(map(urgency, waiting))[:1]


@given(waiting=candidates(priority=st.just(Priority.RUN), rows=st.just(1), arrived=st.just(NOW)))
def test_waiting_tenants_share_the_device_evenly(waiting):
    chosen = batching.admissible(waiting, [], LIMIT, NOW)

    share = {tenant: sum(request.tenant == tenant for request in chosen) for tenant in "abc"}
    still_waiting = {request.tenant for request in waiting if request not in chosen}
    assert all(share[tenant] >= max(share.values()) - 1 for tenant in still_waiting)


def test_a_realtime_frame_joins_a_device_that_is_full_of_background_work():
    background = [Candidate(priority=Priority.LOW) for _ in range(LIMIT)]
    frame = Candidate(priority=Priority.REALTIME)

    chosen = batching.admissible([Candidate(priority=Priority.LOW), frame], background, LIMIT, NOW)

    assert chosen == [frame]


def test_a_flood_of_realtime_frames_takes_no_turn_from_a_call_of_another_tenant():
    flood = [Candidate(Priority.REALTIME, "flood", NOW - number) for number in range(3 * LIMIT)]
    call = Candidate(Priority.RUN, "single")

    chosen = batching.admissible([*flood[LIMIT:], call], flood[:LIMIT], LIMIT, NOW)
    batch = batching.next_step([*flood[: 2 * LIMIT], call], lambda _: LIMIT, NOW)

    assert chosen == [call]
    assert call in batch


def test_of_one_tenant_a_realtime_frame_steps_before_calls_that_came_earlier():
    calls = [Candidate(arrived=NOW - 1) for _ in range(LIMIT)]
    frame = Candidate(Priority.REALTIME)

    assert frame in batching.next_step([*calls, frame], lambda _: LIMIT, NOW)


@pytest.mark.parametrize("steps_up", range(4))
def test_waiting_raises_a_request_by_one_class_at_a_time(steps_up):
    request = Candidate(priority=Priority.LOW, arrived=NOW - steps_up * AGEING_S)

    assert batching.level(request, NOW) == Priority.LOW - steps_up


def test_background_work_that_has_waited_goes_before_a_new_realtime_frame():
    old = Candidate(priority=Priority.LOW, arrived=NOW - 3 * AGEING_S)
    frame = Candidate(priority=Priority.REALTIME)

    chosen = batching.admissible([frame, old], [], 1, NOW)

    assert chosen == [old]


@given(images=candidates(rows=st.sampled_from([1, 2])))
def test_a_step_has_one_shape_within_the_limit_and_the_most_urgent_image_is_in_it(images):
    batch = batching.next_step(images, lambda _: LIMIT, NOW)

    assert len({image.shape for image in batch}) == min(len(images), 1)
    assert sum(image.rows for image in batch) <= LIMIT
    assert min(images, key=lambda image: (urgency(image), image.arrived), default=None) in [*batch, None]


@given(images=candidates(rows=st.sampled_from([1, 2])))
def test_a_step_leaves_no_room_that_an_image_of_its_shape_could_fill(images):
    batch = batching.next_step(images, lambda _: LIMIT, NOW)

    room = LIMIT - sum(image.rows for image in batch)
    left = [image for image in images if image not in batch and batch and image.shape == batch[0].shape]
    assert all(image.rows > room for image in left)


def test_an_image_of_more_rows_than_the_limit_steps_alone():
    guided, plain = Candidate(rows=2, arrived=NOW - 1), Candidate()

    batch = batching.next_step([plain, guided], lambda _: 1, NOW)

    assert batch == [guided]


def test_sizes_take_turns_by_age():
    images = [Candidate(shape="wide", arrived=1.0), Candidate(shape="square", arrived=0.0)]

    batch = batching.next_step(images, lambda _: LIMIT, NOW)

    assert [image.shape for image in batch] == ["square"]


@given(images=candidates())
def test_grouping_by_shape_loses_no_image(images):
    groups = batching.by_shape(images)

    assert sorted(map(id, images)) == sorted(id(image) for group in groups for image in group)
    assert all(len({image.shape for image in group}) == 1 for group in groups)


@given(items=st.lists(st.integers()), size=st.integers(1, 9))
def test_parts_in_order_make_up_the_whole(items, size):
    parts = list(batching.parts(items, size))

    assert [item for part in parts for item in part] == items
    assert all(1 <= len(part) <= size for part in parts)

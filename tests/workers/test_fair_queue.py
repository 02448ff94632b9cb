"""The order in which waiting requests go to an engine."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.messages import AGEING_S, Priority
from server.workers.fair_queue import FairQueue

NOW = 100.0


@dataclass(eq=False)
class Item:
    tenant: str = "a"
    priority: Priority = Priority.RUN
    arrived: float = NOW
    cost: int = 1


def queue_of(items):
    queue = FairQueue()
    for item in items:
        queue.add(item)
    return queue


def take_all(queue, now=NOW):
    order = []
    while queue:
        order.append(queue.first(now))
        queue.take(order[-1])
    return order


items = st.lists(
    st.builds(
        Item,
        tenant=st.sampled_from("abc"),
        priority=st.sampled_from(Priority),
        cost=st.integers(1, 8),
    ),
    max_size=40,
)


@given(items)
def test_every_request_goes_exactly_once_and_the_urgent_first(waiting):
    order = take_all(queue_of(waiting))

    assert sorted(map(id, order)) == sorted(map(id, waiting))
    classes = [Priority.between_tenants(item.priority) for item in order]
    assert classes == sorted(classes)


@given(items)
def test_of_one_tenant_the_urgent_go_first(waiting):
    order = [item.priority for item in take_all(queue_of(waiting)) if item.tenant == "a"]

    assert order == sorted(order)


def test_realtime_goes_before_the_run_of_a_tenant_that_has_had_as_much():
    frame, call = Item("frames", Priority.REALTIME), Item("calls", arrived=NOW - 1)

    assert take_all(queue_of([call, frame])) == [frame, call]


def test_a_flood_of_realtime_does_not_hold_up_the_run_of_another_tenant():
    flood = [Item("flood", Priority.REALTIME) for _ in range(100)]
    queue = queue_of(flood)
    for item in flood[:10]:
        queue.take(item)
    call = Item("single")
    queue.add(call)

    assert queue.first(NOW) is call


def test_equals_go_in_the_order_in_which_they_came():
    waiting = [Item(arrived=NOW + number) for number in range(5)]

    assert take_all(queue_of(waiting), now=NOW + 5) == waiting


def test_waiting_makes_up_for_a_lower_priority():
    old = Item(priority=Priority.LOW, arrived=NOW - 3 * AGEING_S)
    new = Item(priority=Priority.REALTIME)

    assert take_all(queue_of([new, old])) == [old, new]


def test_one_request_does_not_wait_for_a_flood_of_another_tenant():
    flood = [Item("flood") for _ in range(100)]
    single = Item("single")
    queue = queue_of(flood)
    for item in flood[:10]:
        queue.take(item)
    queue.add(single)

    assert queue.first(NOW) is single


@given(costs=st.lists(st.integers(1, 8), min_size=20, max_size=20))
def test_tenants_get_equal_numbers_of_images_however_they_bundle_them(costs):
    queue = queue_of([Item("bundles", cost=cost) for cost in costs] + [Item("singles") for _ in range(200)])
    had = {"bundles": 0, "singles": 0}
    while {item.tenant for item in queue} == set(had):
        item = queue.first(NOW)
        queue.take(item)
        had[item.tenant] += item.cost

    assert abs(had["bundles"] - had["singles"]) <= max(costs)


def test_an_absent_tenant_saves_nothing_up():
    queue = queue_of([Item("busy") for _ in range(60)])
    for _ in range(50):
        queue.take(queue.first(NOW))
    for _ in range(10):
        queue.add(Item("late"))

    assert [item.tenant for item in take_all(queue)[:4]].count("late") == 2


def test_what_a_tenant_has_had_is_forgotten_once_none_waits():
    queue = queue_of([Item(cost=8)])
    take_all(queue)
    waiting = [Item(), Item("b")]
    for item in waiting:
        queue.add(item)

    assert take_all(queue) == waiting


def test_a_charge_counts_also_when_none_waits():
    queue = FairQueue(cost=lambda _: 0.0)
    queue.charge("a", 5.0)
    for tenant in "ab":
        queue.add(Item(tenant))
    take_all(queue)
    queue.charge("a", 1.0)
    waiting = first, second = Item(), Item("b")
    for item in waiting:
        queue.add(item)

    assert take_all(queue) == [second, first]


def test_a_request_that_comes_back_goes_before_those_which_came_later():
    later, earlier = Item(arrived=NOW + 1), Item(arrived=NOW)
    queue = queue_of([later])
    queue.add(earlier)

    assert take_all(queue, now=NOW + 1) == [earlier, later]


def test_a_removed_request_is_gone():
    stays, leaves = Item(), Item()
    queue = queue_of([leaves, stays])

    queue.remove(leaves)

    assert (list(queue), len(queue)) == ([stays], 1)


def test_a_request_which_is_not_in_the_queue_can_not_be_removed():
    with pytest.raises(ValueError, match="not in"):
        queue_of([Item()]).remove(Item())

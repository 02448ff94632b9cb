"""Who waits for an engine and who goes next."""

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


def line_of(items):
    line = FairQueue()
    for item in items:
        line.add(item)
    return line


def take_all(line, now=NOW):
    order = []
    while line:
        order.append(line.first(now))
        line.take(order[-1])
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
def test_everybody_goes_exactly_once_and_the_urgent_first(waiting):
    order = take_all(line_of(waiting))

    assert sorted(map(id, order)) == sorted(map(id, waiting))
    classes = [Priority.between_tenants(item.priority) for item in order]
    assert classes == sorted(classes)


@given(items)
def test_of_one_tenant_the_urgent_go_first(waiting):
    order = [item.priority for item in take_all(line_of(waiting)) if item.tenant == "a"]

    assert order == sorted(order)


def test_realtime_goes_before_the_run_of_one_who_has_had_as_much():
    frame, call = Item("frames", Priority.REALTIME), Item("calls", arrived=NOW - 1)

    assert take_all(line_of([call, frame])) == [frame, call]


def test_a_flood_of_realtime_does_not_hold_up_the_run_of_another_tenant():
    flood = [Item("flood", Priority.REALTIME) for _ in range(100)]
    line = line_of(flood)
    for item in flood[:10]:
        line.take(item)
    call = Item("single")
    line.add(call)

    assert line.first(NOW) is call


def test_equals_go_in_the_order_in_which_they_came():
    waiting = [Item(arrived=NOW + number) for number in range(5)]

    assert take_all(line_of(waiting), now=NOW + 5) == waiting


def test_waiting_makes_up_for_a_lower_priority():
    old = Item(priority=Priority.LOW, arrived=NOW - 3 * AGEING_S)
    new = Item(priority=Priority.REALTIME)

    assert take_all(line_of([new, old])) == [old, new]


def test_one_request_does_not_wait_for_a_flood_of_another_tenant():
    flood = [Item("flood") for _ in range(100)]
    single = Item("single")
    line = line_of(flood)
    for item in flood[:10]:
        line.take(item)
    line.add(single)

    assert line.first(NOW) is single


@given(costs=st.lists(st.integers(1, 8), min_size=20, max_size=20))
def test_tenants_get_equal_numbers_of_images_however_they_bundle_them(costs):
    line = line_of([Item("bundles", cost=cost) for cost in costs] + [Item("singles") for _ in range(200)])
    had = {"bundles": 0, "singles": 0}
    while {item.tenant for item in line} == set(had):
        item = line.first(NOW)
        line.take(item)
        had[item.tenant] += item.cost

    assert abs(had["bundles"] - had["singles"]) <= max(costs)


def test_staying_away_saves_nothing_up():
    line = line_of([Item("busy") for _ in range(60)])
    for _ in range(50):
        line.take(line.first(NOW))
    for _ in range(10):
        line.add(Item("late"))

    assert [item.tenant for item in take_all(line)[:4]].count("late") == 2


def test_one_that_comes_back_goes_before_those_who_came_later():
    later, earlier = Item(arrived=NOW + 1), Item(arrived=NOW)
    line = line_of([later])
    line.add(earlier)

    assert take_all(line, now=NOW + 1) == [earlier, later]


def test_who_leaves_is_gone():
    stays, leaves = Item(), Item()
    line = line_of([leaves, stays])

    line.remove(leaves)

    assert (list(line), len(line)) == ([stays], 1)


def test_one_who_is_not_in_line_can_not_leave_it():
    with pytest.raises(ValueError, match="not in"):
        line_of([Item()]).remove(Item())

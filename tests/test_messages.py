"""The formulas of fairness, which the server's queue and the engine's batches share."""

import pytest

from pipelines.messages import AGEING_S, Priority, fair_limit


@pytest.mark.parametrize(
    ("priority", "waited", "level"),
    [
        (Priority.LOW, 0.0, Priority.LOW),
        (Priority.LOW, 0.99, Priority.LOW),
        (Priority.LOW, 1.0, Priority.NORMAL),
        (Priority.LOW, 3.0, Priority.REALTIME),
        (Priority.RUN, 9.0, Priority.REALTIME),
    ],
)
def test_waiting_raises_a_request_by_a_class_each_ageing_time(priority, waited, level):
    assert priority.level(waited * AGEING_S) == level


def test_between_tenants_realtime_and_run_are_one_class():
    classes = [Priority.between_tenants(priority) for priority in Priority]

    assert classes == [Priority.RUN, Priority.RUN, Priority.NORMAL, Priority.LOW]


@pytest.mark.parametrize(
    ("held", "tenants", "allowed"),
    [
        (0, 1, 16),
        (7, 1, 16),
        (8, 1, 8),  # an only tenant ends at the limit
        (3, 2, 16),
        (4, 2, 8),  # an equal part is had
        (0, 8, 16),
        (1, 8, 8),
        (0, 9, 8),  # more tenants than units: there are no parts to have less than
    ],
)
def test_a_tenant_below_an_equal_part_may_go_to_twice_the_limit(held, tenants, allowed):
    assert fair_limit(8, held, tenants) == allowed

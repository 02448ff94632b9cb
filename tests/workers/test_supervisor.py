"""Ends of an engine, as its supervisor handles them."""

import pytest

from server.workers.supervisor import RestartPolicy
from tests.workers.test_pool import pool_of, restarts, until


@pytest.mark.anyio
async def test_an_engine_without_room_is_tried_again_and_the_operator_told():
    async with pool_of("full", ready=False) as pool:
        # asyncio's own child watcher sometimes loses a status to a race; the next engine ends in the same way.
        await until(lambda: restarts(pool)[0] >= 1 and "not enough memory" in pool.detail)


def test_pauses_double_up_to_the_longest_until_the_device_is_out():
    policy = RestartPolicy(failures=6, first_pause_s=1.0, longest_pause_s=3.0, defunct_pause_s=60.0)

    assert [policy.pause_s(ends) for ends in range(1, 8)] == [0.0, 1.0, 2.0, 3.0, 3.0, 60.0, 60.0]

"""What a slot makes of its engine's ends."""

import pytest

from tests.workers.test_pool import pool_of, restarts, until


@pytest.mark.anyio
async def test_an_engine_without_room_is_tried_again_and_the_operator_told():
    async with pool_of("full", ready=False) as pool:
        # asyncio's own child watcher now and then loses a status to a race; the next engine ends in the same way.
        await until(lambda: restarts(pool)[0] >= 1 and "not enough memory" in pool.detail)

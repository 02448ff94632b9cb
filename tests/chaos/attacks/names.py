"""Runs and webhooks whose host names never resolve: each look-up blocks for as long as a resolver is patient."""

import asyncio
import itertools
import json

from tests.chaos.attack import Attack
from tests.chaos.exchange import exchange, written
from tests.support.server_process import APP

CLIENTS = 16
SILENT_S = 20.0  # four tries of five seconds, as resolv.conf has them by default


async def names(target):
    """Send such runs and jobs with webhooks, one after the other from each client, each with a name of its own."""
    numbers = itertools.count()
    print("under way", flush=True)
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(again_and_again(target, numbers))


async def again_and_again(target, numbers):
    while True:
        host = f"n{next(numbers)}.never.test"
        body = json.dumps({"prompt": "p", "image_url": f"http://{host}/p.jpg"}).encode()
        await exchange(target.port, written("POST", f"/queue/{APP}?fal_webhook=http://{host}/hook", target.key, body))
        await exchange(target.port, written("POST", f"/run/{APP}", target.key, body))


SILENT = {"silent_names": SILENT_S}
ATTACKS = (
    Attack(
        name="names that never resolve",
        run=names,
        changes=SILENT,
        control_changes=SILENT | {"shared_lookups": True},
        good="named",
    ),
)

"""Runs whose data URI has three million escapes, which used to take a second of the interpreter each."""

import asyncio
import json

from tests.chaos.attack import Attack
from tests.chaos.exchange import exchange, written
from tests.support.server_process import APP

CLIENTS = 8
ESCAPES = 3_000_000
BROKEN_S = 0.1


async def percent_uris(target):
    """Send such runs, one after the other from each client."""
    body = json.dumps({"prompt": "p", "image_url": "data:image/png," + "%41" * ESCAPES}).encode()
    request = written("POST", f"/run/{APP}", target.key, body)
    print("under way", flush=True)
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(again_and_again(target.port, request))


async def again_and_again(port, request):
    while True:
        status, _ = await exchange(port, request)
        if not status:
            await asyncio.sleep(BROKEN_S)


ATTACKS = (
    Attack(name="percent-encoded URIs", run=percent_uris, control_changes={"shared_decoder": True}, good="stored"),
)

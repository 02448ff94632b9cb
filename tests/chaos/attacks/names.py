"""Runs and webhooks whose host names never resolve: each look-up blocks for as long as a resolver is patient."""

import asyncio
import itertools
import json

from tests.chaos.attack import Attack
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
        await sent(target, f"/queue/{APP}?fal_webhook=http://{host}/hook", body)
        await sent(target, f"/run/{APP}", body)


async def sent(target, path, body):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Key {target.key}\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await reader.read()
    finally:
        writer.transport.abort()


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

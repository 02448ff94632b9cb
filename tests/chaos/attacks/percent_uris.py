"""Runs whose data URI has three million escapes, which used to take a second of the interpreter each."""

import asyncio
import json

from tests.chaos.attack import Attack
from tests.support.server_process import APP

CLIENTS = 8
ESCAPES = 3_000_000


async def percent_uris(target):
    """Send such runs, one after the other from each client."""
    body = json.dumps({"prompt": "p", "image_url": "data:image/png," + "%41" * ESCAPES}).encode()
    head = f"POST /run/{APP} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Key {target.key}\r\n"
    request = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    print("under way", flush=True)
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(again_and_again(target.port, request))


async def again_and_again(port, request):
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            await reader.read()
        except ConnectionError:
            await asyncio.sleep(0.1)
        finally:
            writer.transport.abort()


ATTACKS = (
    Attack(name="percent-encoded URIs", run=percent_uris, control_changes={"shared_decoder": True}, good="stored"),
)

"""Connections without a key which were answered, or closed, and of which the rest never comes."""

import asyncio
import contextlib
import random

from tests.chaos.attack import Attack
from tests.support.server_process import APP

CONNECTIONS = 1024
SOCKETS = 336
PAUSE_S = 4.0  # on average, until one that was thrown out comes back

UNFINISHED = b"Host: localhost\r\nContent-Length: 1000000\r\n\r\n"
REQUESTS = (b"POST /run/%s HTTP/1.1\r\n" % APP.encode() + UNFINISHED, b"GET /health HTTP/1.1\r\n" + UNFINISHED)
UPGRADE = (
    b"GET /run/%s/realtime?fal_jwt_token=none HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
) % APP.encode()


async def strangers(target):
    """Hold such connections; whoever is thrown out comes back."""
    held = asyncio.Semaphore(0)
    requests = [REQUESTS[number % 2] for number in range(CONNECTIONS)] + [UPGRADE] * SOCKETS
    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(again_and_again(target.port, request, held))
        for _ in range(CONNECTIONS):
            await held.acquire()
        print("under way", flush=True)


async def again_and_again(port, request, held):
    while True:
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            held.release()
            while await reader.read(65536):  # until the server closes
                pass
            writer.transport.abort()
        await asyncio.sleep(2 * PAUSE_S * random.random())


ATTACKS = (Attack(name="strangers", run=strangers, control_changes={"endings_stay": True}),)

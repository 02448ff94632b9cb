"""Uploads that use up the disk quota, by bytes and by number, and go on while they are refused."""

import asyncio
import itertools
import random

from tests.chaos.attack import Attack

CLIENTS = 40
FILLING_S, FULL_S = 0.05, 5.0  # between a client's uploads, on average: until the quota is full, and then
LARGE = 4_000_000
QUOTA = 16 * 1024**2
FILES = 4000  # in the quota of the small ones, two for each upload; the good client stores a thousand within its share


def filling(size):
    """Return an attack by uploads of `size` bytes, each client's half as large after a refusal."""

    async def fill(target):
        sizes = [size >> halved for halved in range(size.bit_length())]
        requests, full = [upload_of(each, target.key) for each in sizes], asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(again_and_again(target.port, requests, full))
            await full.wait()
            print("under way", flush=True)

    return fill


def upload_of(size, key):
    head = f"POST /cdn/files/upload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Key {key}\r\n"
    head += f"Content-Type: application/zip\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + bytes(size)


async def again_and_again(port, requests, full):
    """Upload until refused, then something smaller; when the smallest was refused, the quota is full."""
    for request in itertools.cycle(requests):
        while await accepted(port, request):
            await pause(full)
        if request is requests[-1]:
            full.set()
        await pause(full)


async def pause(full):
    await asyncio.sleep(random.uniform(0, 2 * (FULL_S if full.is_set() else FILLING_S)))


async def accepted(port, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return b" 200 " in (await reader.read())[:20]
    except ConnectionError:
        return False
    finally:
        writer.transport.abort()


CONTROL = {"one_owner": True}
ATTACKS = (
    Attack(
        name="large files in a small quota",
        run=filling(LARGE),
        flags=("--files-quota-bytes", str(QUOTA)),
        control_changes=CONTROL,
        good="stored",
    ),
    Attack(
        name="many files of one byte",
        run=filling(1),
        flags=("--max-stored-files", str(FILES)),
        control_changes=CONTROL,
        good="stored",
    ),
)

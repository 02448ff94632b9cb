"""Uploads that use up the disk quota, by bytes and by number, and go on while they are refused."""

import asyncio
import itertools
import random

from tests.chaos.attack import Attack
from tests.chaos.exchange import exchange, written

CLIENTS = 40
ARCHIVE = {"Content-Type": "application/zip"}  # stored with a metadata file
FILLING_S, FULL_S = 0.05, 5.0  # between a client's uploads, on average: until the quota is full, and then
LARGE = 4_000_000
QUOTA = 16 * 1024**2
FILES = 4000  # in the quota of the small ones, two for each upload; the good client stores a thousand within its share


def filling(size):
    """Return an attack by uploads of `size` bytes, each client's half as large after a refusal."""

    async def fill(target):
        sizes = [size >> halved for halved in range(size.bit_length())]
        requests = [written("POST", "/cdn/files/upload", target.key, bytes(each), **ARCHIVE) for each in sizes]
        full = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(again_and_again(target.port, requests, full))
            await full.wait()
            print("under way", flush=True)

    return fill


async def again_and_again(port, requests, full):
    """Upload until refused, then something smaller; when the smallest was refused, the quota is full."""
    for request in itertools.cycle(requests):
        while (await exchange(port, request))[0] == 200:
            await pause(full)
        if request is requests[-1]:
            full.set()
        await pause(full)


async def pause(full):
    await asyncio.sleep(random.uniform(0, 2 * (FULL_S if full.is_set() else FILLING_S)))


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

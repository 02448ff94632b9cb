"""Uploads that use up the disk quota, by bytes and by number, and go on while they are refused."""

import asyncio

from tests.chaos.attack import Attack

CLIENTS = 40
PAUSE_S = 0.05
LARGE = 4_000_000
QUOTA = 16 * 1024**2
FILES = 1000  # in the quota of the small ones: two for each upload


def filling(size):
    """Return an attack by uploads of `size` bytes."""

    async def fill(target):
        head = f"POST /cdn/files/upload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Key {target.key}\r\n"
        head += f"Content-Type: application/zip\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        request, full = head.encode() + bytes(size), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(again_and_again(target.port, request, full))
            await full.wait()
            print("under way", flush=True)

    return fill


async def again_and_again(port, request, full):
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            answer = await reader.read()
        except ConnectionError:
            answer = b""
        finally:
            writer.transport.abort()
        if b" 200 " not in answer[:20]:
            full.set()
            await asyncio.sleep(PAUSE_S)


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

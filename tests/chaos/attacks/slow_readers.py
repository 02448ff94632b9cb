"""Readers of one public file who take a few kilobytes a second."""

import asyncio
import contextlib
import json
import random
import resource
import socket
from pathlib import Path

from tests.chaos.attack import Attack
from tests.chaos.exchange import exchange, written

READERS = 300
FILE_BYTES = 8 * 1024 * 1024
TAKEN, EVERY_S = 4096, 1.0
PAUSE_S = 4.0  # at most, until one that was cut or refused comes back
UNPROTECTED = ("--max-downloads", "5000", "--send-buffer-bytes", "0", "--min-send-rate", "1")


async def slow_readers(target):
    """Upload the file, then read it slowly; whoever is cut or refused comes back."""
    path = await uploaded(target)
    before, most = kernel_mb(), 0.0
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(READERS):
                group.create_task(again_and_again(target.port, path))
            await asyncio.sleep(PAUSE_S + EVERY_S)  # until all have come
            print("under way", flush=True)
            while True:
                await asyncio.sleep(EVERY_S)
                most = max(most, kernel_mb() - before)
    finally:
        print(json.dumps({"kernel_mb": round(most)}), flush=True)


async def uploaded(target):
    """Return the path of a public file that the attacker's key has stored."""
    upload = written("POST", "/cdn/files/upload", target.key, bytes(FILE_BYTES))
    _, answer = await exchange(target.port, upload)
    return json.loads(answer)["access_url"].partition("/cdn/")[2]


async def again_and_again(port, path):
    loop = asyncio.get_running_loop()
    request = written("GET", f"/cdn/{path}")
    while True:
        await asyncio.sleep(random.random() * PAUSE_S)
        with socket.socket() as connection, contextlib.suppress(ConnectionError):
            connection.settimeout(0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TAKEN)
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.sock_sendall(connection, request)
            while True:
                await asyncio.sleep(EVERY_S)
                if not await loop.sock_recv(connection, TAKEN):
                    break


def kernel_mb():
    """Return the memory of all TCP buffers on this machine, in megabytes."""
    line = next(line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:"))
    return int(line.split()[-1]) * resource.getpagesize() / 1e6


ATTACKS = (Attack(name="slow readers", run=slow_readers, control_flags=UNPROTECTED, good="stored", harm="kernel_mb"),)

"""A thousand status streams of one key, on jobs whose place in the queue changes all the time."""

import asyncio
import json
import random

from tests.chaos.attack import Attack
from tests.chaos.exchange import exchange, written
from tests.support.server_process import APP

STREAMS = 1024
AGAIN_S = (2.0, 4.0)  # seconds until one that was refused comes back, as browsers do
# Each waits for its picture for a second, which it does not get; so those behind them move up some times a second.
AHEAD, PICTURE_S = 600, 1.0
FOLLOWED = 8


class Seen:
    """What the streams saw. `all_answered` is set when each has been answered once."""

    def __init__(self):
        self.open = self.refused = self.events = 0
        self.all_answered = asyncio.Event()

    def report(self):
        return {"open": self.open, "refused": self.refused, "events": self.events}


class Stream(asyncio.Protocol):
    """One connection for a status stream. What arrives is counted and thrown away."""

    def __init__(self, request, seen):
        self.request, self.seen, self.open = request, seen, False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.seen.events += data.count(b"data: ")
        if self.open:
            return
        self.open = data.startswith(b"HTTP/1.1 200")
        self.seen.open += self.open
        if not self.open:
            self.seen.refused += 1
            self.transport.abort()
        if self.seen.open + self.seen.refused >= STREAMS:
            self.seen.all_answered.set()

    def connection_lost(self, exc):
        self.seen.open -= self.open
        if not self.lost.done():
            self.lost.set_result(None)


async def status_streams(target):
    """Open the streams, again and again where they are refused, on jobs that are moving up."""
    seen = Seen()
    async with await asyncio.start_server(no_picture, "127.0.0.1", 0) as pictures:
        url = f"http://127.0.0.1:{pictures.sockets[0].getsockname()[1]}/"
        job = json.dumps({"prompt": "p", "image_url": url}).encode()
        for _ in range(AHEAD):
            await submitted(target, job)
        followed = [await submitted(target, job) for _ in range(FOLLOWED)]
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(STREAMS):
                    path = f"/queue/{APP}/requests/{followed[number % FOLLOWED]}/status/stream"
                    group.create_task(streaming(target, written("GET", path, target.key), seen))
                await seen.all_answered.wait()
                print(f"{seen.open} streams are open", flush=True)
        finally:
            print(json.dumps(seen.report()), flush=True)


async def no_picture(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(PICTURE_S)
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.close()


async def streaming(target, request, seen):
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, stream = await loop.create_connection(lambda: Stream(request, seen), "127.0.0.1", target.port)
            await stream.lost
        except ConnectionError:
            pass
        await asyncio.sleep(random.uniform(*AGAIN_S))


async def submitted(target, job):
    """Return the id of a new job."""
    _, answer = await exchange(target.port, written("POST", f"/queue/{APP}", target.key, job))
    return json.loads(answer)["request_id"]


ATTACKS = (Attack(name="status streams", run=status_streams, control_changes={"no_shares": True}),)

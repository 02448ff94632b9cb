"""A TCP proxy in front of a database that now and then swallows an answer and breaks the connection.

What was sent had reached the database by then: a COMMIT whose answer is lost has happened.
"""

import asyncio
import contextlib
import math
import random
import re
import threading

LOOK_S = 0.5  # between two draws of connections to break


class BreakingProxy:
    """`share`: the part of the open connections that is broken twice a second, each at its next answer like `answer`.

    `broken`: how many were; no more than `most` are.
    """

    def __init__(self, target, share, answer=b"", most=math.inf):
        self.share = share
        self.broken = 0
        self.most = most
        self.port = 0
        self._target = target
        self._answer = re.compile(answer)
        self._chance = random.Random(share)
        self._doomed = {}  # open connection → whether its next answer is swallowed

    async def connected(self, reader, writer):
        """Serve one connection until either side ends it."""
        try:
            there, to_there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the database is away
            writer.close()
            return
        self._doomed[writer] = False
        ways = [
            asyncio.ensure_future(_pass_on(reader, to_there, lambda data: False)),
            asyncio.ensure_future(_pass_on(there, writer, lambda data: self._swallows(writer, data))),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            del self._doomed[writer]
            to_there.close()
            writer.close()

    def _swallows(self, writer, data):
        swallows = self._doomed[writer] and self.broken < self.most and self._answer.search(data) is not None
        self.broken += swallows
        return swallows

    def close(self):
        """End all connections."""
        for writer in self._doomed:
            writer.close()

    async def doom(self):
        """Draw connections to break, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for writer in self._doomed:
                self._doomed[writer] |= self._chance.random() < self.share


async def _pass_on(reader, writer, is_swallowed):
    """Pass bytes on until there are no more, or until some are to be swallowed."""
    with contextlib.suppress(OSError):
        while (data := await reader.read(1 << 16)) and not is_swallowed(data):
            writer.write(data)
            await writer.drain()


@contextlib.contextmanager
def breaking_proxy(target, share, answer=b"", most=math.inf):
    """Context of a proxy on a port of its own in front of loopback's port `target`, in a thread."""
    proxy = BreakingProxy(target, share, answer, most)
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()

    async def serve():
        server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        dooming = asyncio.create_task(proxy.doom())
        started.set()
        await stop.wait()
        server.close()
        dooming.cancel()
        proxy.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()

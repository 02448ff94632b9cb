"""A proxy on loopback which stands in front of a server and breaks what passes, as it is told.

async with fault_proxy(port) as proxy:
    proxy.fault = "hang"        # "refuse", "hang", a status such as 503, or None; then `proxy.matches` of the request
"""

import asyncio
import contextlib
import socket


class FaultProxy:
    """`fault`: what happens to each request whose first line `matches`; `delay`: seconds before each."""

    def __init__(self, target):
        self._target = target
        self.fault = None
        self.delay = 0.0
        self.matches = lambda line: True
        self.requests = []
        self.port = 0
        self._tasks = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def take(self, taken):
        """Serve a socket, and close it in the end, whenever that comes."""
        task = asyncio.create_task(self._serve(taken))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: taken.close())

    async def _serve(self, taken):
        """One connection, request by request."""
        reader, writer = await asyncio.open_connection(sock=taken)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._request(reader, writer):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _request(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
        self.requests.append(lines[0])
        fault = self.fault if self.matches(lines[0]) else None
        if fault == "refuse":
            return False
        if fault == "hang":
            await asyncio.Event().wait()
        body = await reader.readexactly(length)
        await asyncio.sleep(self.delay)
        if fault:
            text = f"<Error><Code>{'AccessDenied' if fault == 403 else 'Fault'}</Code></Error>"
            writer.write(f"HTTP/1.1 {fault} Fault\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
            await writer.drain()
            return True
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            to_writer.write(head + body)
            while block := await to_reader.read(1 << 16):
                writer.write(block)
                await writer.drain()
        finally:
            to_writer.close()
            with contextlib.suppress(ConnectionError):
                await to_writer.wait_closed()
        return False  # the answer says that the connection ends

    async def cut(self):
        """End what hangs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def fault_proxy(target):
    """The proxy in front of a port of loopback. At the end every connection is closed that was taken."""
    proxy = FaultProxy(target)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.0)  # asyncio waits
        proxy.port = listener.getsockname()[1]

        def accept():  # no task: one that is cancelled may have taken a socket that nobody closes
            with contextlib.suppress(BlockingIOError):
                taken, _ = listener.accept()
                taken.settimeout(0.0)
                proxy.take(taken)

        loop.add_reader(listener, accept)
        try:
            yield proxy
        finally:
            loop.remove_reader(listener)
            await proxy.cut()

"""An HTTP proxy that knows CONNECT, on loopback: `async with ConnectProxy() as proxy: …`."""

import asyncio
import contextlib


class ConnectProxy:
    """Tunnels to loopback, whatever name it is given, to the port in `ports` by host name, else to the one asked for.

    `refuse`: the status line with which it answers instead; None: it never answers, as one that waits for its target.
    `heads`: the requests that it got. `hung_up`: is set when a client leaves without an answer.
    """

    def __init__(self, ports=None, refuse=""):
        self.ports = ports or {}
        self.refuse = refuse
        self.heads = []
        self.hung_up = asyncio.Event()
        self.port = 0
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def targets(self):
        """The targets of the tunnels that were asked for."""
        return [head.split(" ")[1] for head in self.heads]

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            if self.refuse is None:
                await reader.read()
                self.hung_up.set()
                return
            if self.refuse:
                writer.write(f"HTTP/1.1 {self.refuse}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            host, _, port = head.split(" ")[1].rpartition(":")
            there, here = await asyncio.open_connection("127.0.0.1", self.ports.get(host, int(port)))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with contextlib.closing(here):
                await asyncio.gather(_copy(reader, here), _copy(there, writer))


async def _copy(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()

"""A TCP proxy that breaks every so-manieth exchange that passes through it, in three ways by turns:

    refuse   the connection is reset before the request goes on
    swallow  the request goes on, and its answer is lost
    cut      the answer is cut off after its first bytes

It sees only TLS records: a new exchange begins with the first bytes from the client after bytes from the server.
`python fault_proxy.py LISTEN_PORT TARGET_PORT EVERY` prints "ready", and one line per broken exchange.
"""

import asyncio
import itertools
import socket
import struct
import sys
from collections.abc import Iterator

# Bytes of an answer that get through before it is cut: its TLS record begins, but is never whole.
CUT_AFTER = 20
# The TLS handshake is two exchanges of its own; breaking those is "refuse" under another name.
HANDSHAKE_EXCHANGES = 2
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def fates(every: int) -> Iterator[str]:
    """How one exchange after another ends: "" is well."""
    for fault in itertools.cycle(("refuse", "swallow", "cut")):
        yield from itertools.repeat("", every - 1)
        yield fault


class Exchange:
    """One client connection and how its current exchange is to end."""

    def __init__(self, fates: Iterator[str]) -> None:
        self._fates = fates
        self._answered = True
        self._count = 0
        self.fault = ""

    def request(self) -> str:
        """Bytes from the client: the fault of this exchange, decided once."""
        if self._answered:
            self._answered = False
            self._count += 1
            self.fault = next(self._fates) if self._count > HANDSHAKE_EXCHANGES else ""
        return self.fault

    def answer(self) -> str:
        """Bytes from the server."""
        self._answered = True
        return self.fault


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a crash or a middlebox does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange) -> None:
    """Carry the client's bytes, up to a refused exchange."""
    while data := await reader.read(65536):
        if exchange.request() == "refuse":
            return
        writer.write(data)
        await writer.drain()


async def downstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange) -> None:
    """Carry the server's bytes, up to a lost or cut answer."""
    while data := await reader.read(65536):
        fault = exchange.answer()
        if fault == "swallow":
            return
        writer.write(data[:CUT_AFTER] if fault == "cut" else data)
        await writer.drain()
        if fault == "cut":
            return


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange, target: int) -> None:
    """Carry one connection until either side ends it or a fault does."""
    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", target)
    tasks = [
        asyncio.create_task(upstream(reader, server_writer, exchange)),
        asyncio.create_task(downstream(server_reader, writer, exchange)),
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if exchange.fault:
        print(exchange.fault, flush=True)
        reset(writer)
        reset(server_writer)
    else:
        writer.close()
        server_writer.close()


async def main(listen: int, target: int, every: int) -> None:
    """Serve until killed."""
    fate = fates(every)
    server = await asyncio.start_server(
        lambda reader, writer: relay(reader, writer, Exchange(fate), target), "127.0.0.1", listen
    )
    async with server:
        print("ready", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))

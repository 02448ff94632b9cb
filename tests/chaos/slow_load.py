"""Load of hostile clients for R7: slow connections and websocket flooders, in a process of their own.

    python -m tests.chaos.slow_load URL TLS_URL KEY        until stdin is closed

    300 slow connections    75 each: headers by the byte, a body by the byte, an answer left unread, a TLS handshake
                            that goes no further
    102 flooders            websockets, 34 each: pings, tiny frames, good inputs; more than can be served

All connect within two seconds, and reconnect when the server closes them. A flooder sends a batch of 100 frames four
times a second unless its buffer is full: 40 800 frames a second in all, in about 400 system calls.
"""

import argparse
import asyncio
import json
import socket
import sys
from urllib.parse import urlsplit

from tests.fuzz.values import data_uri_of, pictures
from tests.fuzz.websocket_cases import PING, TEXT, frame
from tests.support.server_process import APP

# Numbers of clients of each kind.
SLOW = 75
FLOODERS = 34
LARGE = 32 << 20
RAMP_S = 2.0
DRIP_S = 0.5
BATCH_S = 0.25
BATCH = 100


class Load:
    """All clients of the load. Without a `tls_url` the target is a process that answers nothing."""

    def __init__(self, url, tls_url, key):
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._tls_port = urlsplit(tls_url).port or self._port
        self._silent_target = not tls_url
        self._large = "/"
        self._head = f"Host: {self._host}:{self._port}\r\nAuthorization: Key {key}\r\n"

    async def run(self, done):
        """Run all clients until `done`."""
        if not self._silent_target:
            await self._upload()
        arguments = {"prompt": "p", "image_url": data_uri_of(pictures()["jpeg"]), "seed": 1, "sync_mode": True}
        floods = frame(PING, b"x"), frame(TEXT, b"x"), frame(TEXT, json.dumps(arguments).encode())
        slow = self._drip_headers, self._drip_body, self._unread, self._idle_tls
        clients = [self._again(kind) for kind in slow for _ in range(SLOW)]
        clients += [self._again(self._flood, one) for one in floods for _ in range(FLOODERS)]
        tasks = []
        for client in clients:
            tasks.append(asyncio.create_task(client))
            await asyncio.sleep(RAMP_S / len(clients))
        await done
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _again(self, kind, *arguments):
        """Run one client again and again."""
        while True:
            try:
                await kind(*arguments)
            except (ConnectionError, asyncio.IncompleteReadError):
                await asyncio.sleep(DRIP_S)

    async def _open(self, port=None):
        return await asyncio.open_connection(self._host, port or self._port)

    async def _drip_headers(self):
        await self._drip(f"GET / HTTP/1.1\r\n{self._head}X: ".encode(), b"x")

    async def _drip_body(self):
        head = f"POST /run/{APP} HTTP/1.1\r\n{self._head}Content-Length: 1000000\r\n\r\n"
        await self._drip(head.encode(), b" ")

    async def _drip(self, first, then):
        """Send `first` at once, then `then` byte by byte until the server closes the connection."""
        reader, writer = await self._open()
        try:
            writer.write(first)
            gone = asyncio.ensure_future(reader.read())
            while not (await asyncio.wait({gone}, timeout=DRIP_S))[0]:
                writer.write(then)
        finally:
            writer.transport.abort()

    async def _unread(self):
        """Request a file larger than all buffers between, and read nothing of it."""
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.settimeout(0)
        await asyncio.get_running_loop().sock_connect(small, (self._host, self._port))
        _, writer = await asyncio.open_connection(sock=small)
        try:
            writer.transport.pause_reading()
            writer.write(f"GET {self._large} HTTP/1.1\r\n{self._head}\r\n".encode())
            await asyncio.Event().wait()
        finally:
            writer.transport.abort()

    async def _upload(self):
        """Store the file that `_unread` requests."""
        reader, writer = await self._open()
        writer.write(f"POST /cdn/files/upload HTTP/1.1\r\n{self._head}Content-Length: {LARGE}\r\n\r\n".encode())
        writer.write(bytes(LARGE))
        answer = (await reader.readuntil(b"}")).decode()
        self._large = json.loads(answer[answer.index("{") :])["access_url"].partition(self._host)[2].partition("/")[2]
        self._large = f"/{self._large}"
        writer.transport.abort()

    async def _idle_tls(self):
        reader, writer = await self._open(self._tls_port)
        try:
            writer.write(b"\x16\x03\x01\x02\x00\x01")
            await reader.read()
        finally:
            writer.transport.abort()

    async def _flood(self, one):
        """Send batches of one frame; discard what is received."""
        reader, writer = await self._open()
        try:
            writer.write(
                f"GET /run/{APP}/realtime HTTP/1.1\r\n{self._head}Upgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            gone = asyncio.ensure_future(self._drop(reader))
            while not (await asyncio.wait({gone}, timeout=BATCH_S))[0]:
                if not writer.transport.get_write_buffer_size():
                    writer.write(one * BATCH)
        finally:
            writer.transport.abort()

    async def _drop(self, reader):
        while await reader.read(1 << 16):
            pass


async def until_closed(asked):
    """Run the load until stdin is closed."""
    closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await Load(asked.url, asked.tls_url, asked.key).run(closed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("url", "tls_url", "key"):
        parser.add_argument(name)
    asyncio.run(until_closed(parser.parse_args()))


if __name__ == "__main__":
    main()

"""The client side of one malformed connection, and the checks of the server's answers."""

import asyncio
import collections
import itertools
import json
import re

from tests.fuzz.websocket_cases import CLOSE, PING, PONG, TEXT, failure, frame

PATIENCE_S = 20.0  # seconds; many times every deadline of the server
_BAD_LOG = re.compile(r"Traceback|\b(ERROR|CRITICAL)\b|Fatal error")
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d ")
_FAREWELL = b"fuzz"
_INTERNAL_ERROR = (1011).to_bytes(2, "big")


class Findings:
    """Violations found: kind, numbers of the cases that may have caused it, and evidence."""

    def __init__(self, log):
        self.found = []
        self.answers = collections.Counter()
        self._log = log
        self._read = log.stat().st_size
        self._in_flight = set()
        self._recent = collections.deque(maxlen=16)

    def begin(self, case):
        self._in_flight.add(case.number)

    def end(self, case):
        """Attribute a new error in the log to this case and to those in flight or recently ended."""
        self._recent.append(case.number)
        if fault := self.logged():
            self.found.append(("log", sorted({*self._in_flight, *self._recent}), fault))
        self._in_flight.discard(case.number)

    def add(self, kind, case, seen):
        self.found.append((kind, [case.number], f"{seen!r}"[:300]))

    def logged(self):
        """Return the first error logged since the last call, or None."""
        if self._log.stat().st_size == self._read:
            return None
        with self._log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        self._read += len(new)
        lines = new.decode("utf-8", "replace").splitlines()
        first = next((number for number, line in enumerate(lines) if _BAD_LOG.search(line)), None)
        if first is None:
            return None
        block = list(itertools.takewhile(lambda line: not _LOG_LINE.match(line), lines[first + 1 :]))
        return "\n".join([lines[first], *block[-12:]])

    async def pin(self, again):
        """Find the case that caused each finding: `again` sends the case of a number once more, alone."""
        for number, (kind, suspects, seen) in enumerate(self.found):
            for suspect in suspects if len(suspects) > 1 else ():
                await again(suspect)
                if self.logged():
                    self.found[number] = kind, [suspect], seen
                    break

    def show(self, replay):
        """Print the findings and the command that reproduces each."""
        for kind, numbers, seen in self.found[:20]:
            print(f"{kind}: {seen}", f"    {replay} {' or '.join(map(str, numbers))}", sep="\n")


class Conversation:
    """One connection: sends a case, reads and checks the answer."""

    def __init__(self, port, case, findings):
        self.heard = bytearray()
        self._port = port
        self._case = case
        self._findings = findings

    async def hold(self):
        """Send the case, and read until the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(self._case.opening)
                await self._listen(reader, writer)
        except TimeoutError:
            self._findings.add("unanswered", self._case, bytes(self.heard[:200]))
        except (ConnectionError, asyncio.IncompleteReadError):
            if self._case.opening.strip() and not self.heard:
                self._findings.add("closed without a word", self._case, self._case.opening[:300])
            elif self.heard:
                self._findings.add("broken off", self._case, bytes(self.heard[-300:]))
        finally:
            writer.transport.abort()

    async def _listen(self, reader, writer):
        status, headers = await self._head(reader)
        while 100 <= status < 200 and status != 101:
            status, headers = await self._head(reader)
        self._findings.answers[str(status)] += 1
        if status == 101:
            if self._case.frames:
                await self._socket(reader, writer)
            return
        self._judge(status, headers)
        head_only = self._case.opening[:5] == b"HEAD " or status in {204, 304}
        body = b"" if head_only else await self._body(reader, headers)
        if status >= 400 and not head_only:
            self._judge_error(headers, body)

    def _judge(self, status, headers):
        asked = status == 504 and headers.get("x-fal-request-timeout-type") == "user"
        if status >= 500 and not asked:
            self._findings.add(f"status {status}", self._case, bytes(self.heard[:300]))
        if "x-fal-request-id" not in headers:
            self._findings.add("no request id", self._case, bytes(self.heard[:300]))

    def _judge_error(self, headers, body):
        try:
            good = "detail" in json.loads(body)
        except (ValueError, TypeError):
            good = False
        cancelled = b'"status"' in body  # fal's answer to a cancel has no detail
        if headers.get("content-type") != "application/json" or not (good or cancelled):
            self._findings.add("error that is no JSON", self._case, bytes(self.heard[:400]))

    async def _head(self, reader):
        data = await self._read(reader.readuntil(b"\r\n\r\n"))
        first, *lines = data.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers

    async def _body(self, reader, headers):
        if "content-length" in headers:
            return await self._read(reader.readexactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") != "chunked":
            return await self._read(reader.read())
        body = b""
        while size := int(await self._read(reader.readuntil(b"\r\n")), 16):
            body += (await self._read(reader.readexactly(size + 2)))[:-2]
        return body

    async def _socket(self, reader, writer):
        """Wait for the answer that is owed, then send a ping: it must be answered or the websocket closed."""
        writer.write(self._case.frames)
        if self._case.owed:
            while (await self._frame(reader))[0] not in {TEXT, 2}:
                pass
        writer.write(frame(PING, _FAREWELL))
        opcode, payload = 0, b""
        while opcode != CLOSE and (opcode, payload) != (PONG, _FAREWELL):
            opcode, payload = await self._frame(reader)
        if opcode == PONG:
            writer.write(frame(CLOSE, b"\x03\xe8"))
            while (await self._frame(reader))[0] != CLOSE:
                pass

    async def _frame(self, reader):
        first, length = await self._read(reader.readexactly(2))
        if length >= 126:
            length = int.from_bytes(await self._read(reader.readexactly(2 if length == 126 else 8)), "big")
        payload = await self._read(reader.readexactly(length))
        if first & 15 == TEXT and (status := failure(payload)):
            self._findings.add(f"status {status} in a message", self._case, payload)
        if first & 15 == CLOSE and payload[:2] == _INTERNAL_ERROR:
            self._findings.add("closed with 1011", self._case, payload)
        return first & 15, payload

    async def _read(self, reading):
        data = await reading
        if len(self.heard) < 4096:
            self.heard += data
        return data

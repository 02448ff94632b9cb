"""Read a request's body within limits, and stop work when the client leaves.

Neither starlette nor FastAPI cancels a handler when the client leaves, so a handler that works for long watches for it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from server.access.limits import Reservation
from server.fal.errors import PlainError, RequestError

T = TypeVar("T")

# A body of this size is read and parsed within a millisecond. A larger one holds up the loop, and waits for its turn.
AT_ONCE_BYTES = 1 << 20


async def read_body(request: Request, limit: int, memory: Reservation, turn: asyncio.Lock) -> bytes | bytearray:
    """Return the request's body; take `memory` for it as announced, else as it arrives.

    `turn`: held in turn for each piece of a body over `AT_ONCE_BYTES`, so that many together don't hold up the loop.

    Raises `PlainError` 413 as soon as it is known to exceed `limit` bytes, `RequestError` 429 when memory is short.
    """
    written = request.headers.get("content-length", "")
    announced = int(written[:20]) if written.isdecimal() else 0
    if announced > limit:
        raise _too_large(limit)
    memory.take(announced)
    body, size = bytearray(announced), 0  # whole at once: to grow it piece by piece would copy it again and again
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestError("client_disconnected", "The client left before its request was complete")
        chunk = message.get("body", b"")
        end = size + len(chunk)
        if end > limit:
            raise _too_large(limit)
        if end > memory.amount:
            memory.take(end - memory.amount)
        if not size and not message.get("more_body", False):
            return bytes(chunk)
        body[size:end] = chunk
        size = end
        if not message.get("more_body", False):
            del body[size:]
            return body
        if size > AT_ONCE_BYTES:
            async with turn:
                await asyncio.sleep(0)


def _too_large(limit: int) -> PlainError:
    return PlainError(413, f"The request body is larger than {limit} bytes")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client leaves first, cancel it and raise `RequestError` 499."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    finally:
        await stop(working, leaving)
    raise RequestError("client_disconnected", "The client left before the answer")


async def disconnected(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

"""The transport as uvicorn's request-response cycle sees it."""

import asyncio
from collections.abc import Callable


class CycleTransport:
    """Writes to the connection's transport; how that is closed, `close` decides."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close

"""Deadline for a client that reads: what waits for it must be taken at a minimum rate.

The time during which nothing waits does not count, so that event streams and websockets may be silent.
"""

import asyncio
from asyncio import TimerHandle

from server.settings import ConnectionSettings
from server.web.clock import late

# Bytes which may wait in this process before the app is paused: one piece of a file.
_HIGH_WATER = 64 * 1024

# How often it is looked, at most, within `send_timeout`.
_CHECKS = 20


class SendDeadline:
    """Aborts a connection whose client has fallen `send_timeout` seconds behind `min_send_rate`."""

    def __init__(
        self, transport: asyncio.Transport, limits: ConnectionSettings, loop: asyncio.AbstractEventLoop
    ) -> None:
        transport.set_write_buffer_limits(_HIGH_WATER)
        self._transport = transport
        self._limits = limits
        self._loop = loop
        self._left = limits.send_timeout  # seconds that the client may yet fall behind
        self._counted = 0.0
        self._waiting = 0
        self._timer: TimerHandle | None = None

    def watch_rest(self) -> bool:
        """Return whether bytes wait; then the protocol is paused until the client has taken all of them.

        Under TLS these are the bytes that the kernel and up to 64 KiB of ciphertext have no room for.
        """
        waiting = self._transport.get_write_buffer_size() > 0
        if waiting:
            self._transport.set_write_buffer_limits(0)
        return waiting

    def start(self) -> None:
        """Note that bytes wait for the client."""
        if self._timer is None:
            self._count()
            self._arm()

    def caught_up(self) -> None:
        """Note that the client has taken what waited."""
        self.stop()
        if not self._transport.is_closing():
            self._transport.set_write_buffer_limits(_HIGH_WATER)

    def stop(self) -> None:
        """Note that nothing waits any more, or that the client has left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._settle()

    def _arm(self) -> None:
        # Not ever more often for a client which keeps just within the limit.
        due = self._loop.time() + max(self._left, self._limits.send_timeout / _CHECKS)
        self._timer = self._loop.call_at(due, self._check, due)

    def _check(self, due: float) -> None:
        if late(due):  # this process has stalled, not the client
            self._count()
        else:
            self._settle()
        if self._left > 0:
            self._arm()
        else:
            self._transport.abort()

    def _settle(self) -> None:
        since, before = self._counted, self._waiting
        self._count()
        taken = max(0, before - self._waiting)
        left = self._left - (self._counted - since) + taken / self._limits.min_send_rate
        self._left = min(self._limits.send_timeout, left)

    def _count(self) -> None:
        self._counted = self._loop.time()
        self._waiting = self._transport.get_write_buffer_size()

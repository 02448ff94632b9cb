"""Tells a slow client from a process that has stood still."""

import asyncio

# How late a timer may fire before that says more about this process than about the client.
_LATE_S = 1.0


def late(due: float) -> bool:
    """Return whether a timer that was due at `due` (`loop.time()`) fires so late that this process has stood still.

    What clients sent meanwhile is yet to be read, so they get their time again.
    """
    return asyncio.get_running_loop().time() - due > _LATE_S

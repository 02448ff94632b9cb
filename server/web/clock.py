"""Distinguish a slow client from a stalled process, by how late a timer fires."""

import asyncio

# Seconds that a timer may be late before the process counts as stalled.
_LATE_S = 1.0


def late(due: float) -> bool:
    """Return whether a timer that was due at `due` (`loop.time()`) fires so late that this process has stalled.

    What clients sent meanwhile has not been read yet, so their time starts again.
    """
    return asyncio.get_running_loop().time() - due > _LATE_S

"""The clock of the queue: Unix time for what is stored, which runs by the monotonic clock.

The rule for the whole server: waits run by the monotonic clock; `time.time` is for what is stored across restarts or
read by others: files' and tokens' ends, a job's dates, what signs webhooks. A token is judged by its end alone.

A queue's waits are stored too: start timeouts, leases, retries of jobs and of webhooks. If someone sets the machine's
clock meanwhile, an hour would be added to each or taken from it. So the queue's time runs on by the monotonic clock,
until the queue has moved what is stored along with the machine's clock, and calls `follow`. Dates which are no waits,
such as a job's end, are not moved: what expires by age does so by the machine's clock.
"""

import time
from collections.abc import Callable


class SteadyClock:
    """Unix time in seconds, when called. `tolerance_s`: a difference that is no jump, as time servers correct it."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        tolerance_s: float = 1.0,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._tolerance_s = tolerance_s
        self._offset = wall() - monotonic()

    def __call__(self) -> float:
        """Return the time."""
        return self._monotonic() + self._offset

    def jump(self) -> float:
        """Return by how many seconds the machine's clock was set since the last `follow`; 0 if it was not."""
        before, wall, after = self(), self._wall(), self()  # the process may be frozen between two of them
        if wall < before - self._tolerance_s:
            return wall - before
        return wall - after if wall > after + self._tolerance_s else 0.0

    def follow(self, jump: float) -> None:
        """Set this clock, too."""
        self._offset += jump

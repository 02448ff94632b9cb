"""What owners have in the database: bytes of payloads, measured by one server and read by all; waiting jobs."""

import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from server.jobs.postgres import upkeep
from server.jobs.postgres.pool import Pool

ROW_BYTES = 1024  # of a job besides its payloads: its row, log and index entries
TAKES_S = 0.01  # where measuring takes longer than this, it is done that much more rarely
QUIET = 10.0  # times as rarely measures a server that has changed nothing: those that have do it for all
COUNTED_AGAIN_S = 100e-6  # for each waiting job: counting one takes 0.7 µs, and all of it may take 1 % of a core


class Waiting:
    """The numbers of waiting jobs by owner, as counted last. Where 10 000 wait, they may be a second old."""

    def __init__(self) -> None:
        self.by_owner: Mapping[str, int] = {}
        self._due_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether to count anew."""
        return time.monotonic() >= self._due_at

    def take(self, by_owner: Mapping[str, int]) -> None:
        """Take over what was counted."""
        self.by_owner = by_owner
        self._due_at = time.monotonic() + COUNTED_AGAIN_S * sum(by_owner.values())


class Measured(NamedTuple):
    """Bytes in all, with rows; of inputs of unfinished jobs and of results, by owner."""

    total: int
    inputs: Mapping[str, int]
    results: Mapping[str, int]


class Usage:
    """`every_s`: how old a measurement may be. Where one takes long, it may be older."""

    def __init__(self, pool: Pool, every_s: float) -> None:
        self._pool = pool
        self._every_s = every_s
        self._took_s = 0.0
        self._older_s = 0.0  # a measurement that is older by this is made anew

    def touched(self) -> None:
        """Note that this server has stored something, or ended a job."""
        self._older_s = min(self._older_s, self._every_s * max(1.0, self._took_s / TAKES_S))

    def changed(self) -> None:
        """Note that this server has let something go: what was measured before is too much."""
        self._older_s = 0.0

    async def measured(self) -> Measured:
        """Return the newest measurement, made anew if it is old and no other server is at it."""
        older_s, self._older_s = self._older_s, QUIET * self._every_s
        began, anew = time.monotonic(), False
        try:
            ((usage, anew),) = await self._pool.fetch(upkeep.USAGE, older_s)
        finally:
            if not anew:
                self._older_s = min(self._older_s, older_s)
        if anew:
            self._took_s = time.monotonic() - began
        owned = msgspec.json.decode(usage, type=dict[str, tuple[int, int, int]])
        return Measured(
            sum(inputs + results + jobs * ROW_BYTES for inputs, results, jobs in owned.values()),
            {owner: inputs for owner, (inputs, _, _) in owned.items()},
            {owner: results for owner, (_, results, _) in owned.items()},
        )

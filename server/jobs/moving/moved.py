"""A job as it moves from one form of the database to the other."""

from typing import Any, Final, NamedTuple

from server.jobs.job import Status
from server.jobs.schema import jobs

# Columns of `jobs` that move. `seq` is given anew, in the same order.
COLUMNS: Final = tuple(column.name for column in jobs.columns if column.name != "seq")

# Jobs that are moved together, and bytes of payloads from which on no more are.
AT_ONCE: Final = 100
BYTES_AT_ONCE: Final = 8 << 20


class Line(NamedTuple):
    """A line of a job's log, by its number. `at`: Unix time."""

    number: int
    at: float
    level: str
    message: str


class Due(NamedTuple):
    """A webhook that has not been delivered. `due_at`: Unix time."""

    url: str
    origin: str
    attempts: int
    due_at: float


class Moved(NamedTuple):
    """All that is stored of a job. `seq`: its place where it comes from; `columns`: by `COLUMNS`."""

    seq: int
    columns: dict[str, Any]
    input: bytes | None
    output: bytes | None
    log: tuple[Line, ...]
    webhooks: tuple[Due, ...]

    @property
    def id(self) -> str:
        """The request id."""
        request_id: str = self.columns["id"]
        return request_id

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return bool(self.columns["status"] == Status.COMPLETED.value)

    @property
    def bytes(self) -> int:
        """The bytes of its payload."""
        return len(self.input or b"") + len(self.output or b"")


def at_rest(columns: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a job that no server runs: one that was running waits again, at its old place."""
    if columns["status"] == Status.IN_PROGRESS.value:
        return columns | {"status": Status.IN_QUEUE.value, "worker": None, "lease_until": None}
    return columns


class Count(NamedTuple):
    """How much is stored: jobs, those that have not ended, lines of logs, webhooks to deliver."""

    jobs: int
    unfinished: int
    lines: int
    webhooks: int

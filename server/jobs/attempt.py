"""One try at a queued job: runs and times it, and decides whether its end is a result or a retry."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias

from pipelines.messages import Decoded, Large, Log, Preview, Started
from server.fal.errors import FalError, PassingFailure, RequestError, start_timed_out
from server.jobs.job import MAX_TRIES, Job, Result
from server.logs import call, fault

LOG = logging.getLogger(__name__)

Event: TypeAlias = Large | Decoded | Started | Log | Preview
OnEvent: TypeAlias = Callable[[Event], None]
Run: TypeAlias = Callable[[Job, OnEvent], Awaitable[dict[str, Any]]]

MAX_RETRY_DELAY_S = 30.0

# The connection to the engine failed: another try may well succeed. What an engine answered with an error (500) the
# pool itself has tried again.
_WORTH_A_TRY = frozenset(
    {
        "runner_connection_timeout",
        "runner_disconnected",
        "runner_connection_refused",
        "runner_connection_error",
        "runner_incomplete_response",
    }
)
# There was no engine: the job waits for one without limit.
_NO_ENGINE = frozenset({"runner_scheduling_failure", "startup_timeout"})
# There was no room for the result, as the disk is full; or no turn for its fetch, or no proxy to fetch through.
_NO_ROOM = "concurrent_requests_limit"
NO_ROOM_DELAY_S = 3.0  # each try costs an engine a run; freed space is noticed within this time


class Retry(NamedTuple):
    """Return to the queue for `delay_s` seconds. With `refund` the attempt does not count as a try."""

    delay_s: float
    refund: bool


def retry(error: FalError, job: Job) -> Retry | None:
    """Return when a job that ended with `error` is run again; None if it is not."""
    if error.error_type in _NO_ENGINE:
        return Retry(1.0, refund=True)
    passing = isinstance(error, PassingFailure)
    if error.error_type == _NO_ROOM and not passing and not job.no_retry:
        return Retry(NO_ROOM_DELAY_S, refund=True)
    worth_it = passing or error.error_type in _WORTH_A_TRY
    if not worth_it or job.no_retry or job.attempt >= MAX_TRIES:
        return None
    return Retry(min(2.0 ** (job.attempt - 1), MAX_RETRY_DELAY_S), refund=False)


class Attempt:
    """One run of a job that was claimed just now.

    `decoding`: its picture is large and not decoded yet, so that it takes no place in an engine. `on_decoding` is
    called when that changes.
    """

    def __init__(
        self,
        job: Job,
        run: Run,
        *,
        on_log: Callable[[Log], None],
        on_decoding: Callable[[], None],
    ) -> None:
        self.job = job
        self.decoding = False
        self.task: asyncio.Task[None] | None = None
        self._run = run
        self._on_log = on_log
        self._on_decoding = on_decoding
        self._limit = asyncio.timeout(job.start_in)
        self._began = time.perf_counter()

    @property
    def took(self) -> float:
        """Seconds since an engine started the job, or since its claim if none has."""
        return round(time.perf_counter() - self._began, 6)

    def cancel(self) -> None:
        """Stop the run, in whatever state it is."""
        if self.task is not None:
            self.task.cancel()

    async def make(self) -> Result | Retry:
        """Run the job once, and log how it ended."""
        outcome = "cancelled"
        try:
            made = await self._make()
            outcome = "retried" if isinstance(made, Retry) else "ok" if made.error is None else "failed"
        finally:
            call(
                logging.INFO,
                f"job {self.job.id}",
                route="queue",
                key=self.job.owner,
                outcome=outcome,
                seconds=round(self.took, 4),
                request_id=self.job.id,
            )
        return made

    async def _make(self) -> Result | Retry:
        if self.job.damaged:
            LOG.error("job %s can't be read from the database, and is ended", self.job.id)
            return Result.failure(RequestError("internal_error", "The request can no longer be read; send it again"))
        if self.job.attempt > MAX_TRIES:
            return Result.failure(RequestError("runner_server_error", f"Gave up after {MAX_TRIES} tries"))
        try:
            async with self._limit:
                output = await self._run(self.job, self._heard)
            return Result.success(output)
        except Exception as error:  # noqa: BLE001 - a job's failure is its own, whatever it is
            return self._verdict(error)

    def _verdict(self, error: Exception) -> Result | Retry:
        if self._limit.expired():
            return Result.failure(start_timed_out())
        if isinstance(error, FalError):
            lasting = error.lasting if isinstance(error, PassingFailure) else error
            return retry(error, self.job) or Result.failure(lasting)
        fault(f"job {self.job.id}", error)
        reason = "The request failed for a reason of the server's own"
        return Result.failure(RequestError("internal_error", reason))

    def _heard(self, event: Event) -> None:
        if isinstance(event, Started):
            self._began = time.perf_counter()
            if self._limit.when() is not None and not self._limit.expired():
                self._limit.reschedule(None)
        elif isinstance(event, Large | Decoded):
            self.decoding = isinstance(event, Large)
            self._on_decoding()
        elif isinstance(event, Log):
            self._on_log(event)

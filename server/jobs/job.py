"""A queue job as a value: what is submitted, claimed and shown. Status and webhook are made from one `Snapshot`.

    IN_QUEUE ──started──▶ IN_PROGRESS ──finished──▶ COMPLETED
        ▲                      │
        └──────requeued────────┘

A failed or cancelled job is COMPLETED too: fal has no other final status, and the status code of the result tells them
apart. Nothing changes a job after its end. Sources: fal's "Queue" and "Webhooks".
"""

import enum
import urllib.parse
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipelines.messages import Priority
from server.fal.errors import FalError, RequestError

MAX_TRIES = 10  # fal's own limit on how often its queue tries one request
MAX_LOGS = 1000  # lines kept of one job; a run logs about five


class Status(enum.StrEnum):
    """The three statuses that fal's clients know; any other makes them poll for ever or raise."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


class Outcome(enum.Enum):
    """Outcome of a cancel: HTTP status, and the word in its body."""

    REMOVED = (200, "OK")
    REQUESTED = (202, "CANCELLATION_REQUESTED")
    ALREADY_COMPLETED = (400, "ALREADY_COMPLETED")
    NOT_FOUND = (404, "NOT_FOUND")

    @property
    def http_status(self) -> int:
        """The answer's HTTP status code."""
        return self.value[0]

    @property
    def body(self) -> dict[str, str]:
        """The answer's JSON."""
        return {"status": self.value[1]}


class LogLine(msgspec.Struct, frozen=True):
    """One line for the job's owner; `at` is Unix time in seconds."""

    at: float
    level: str
    message: str

    def body(self) -> dict[str, Any]:
        """Return the line in fal's form.

        Its Swift and Java clients read the level in `labels`, the JavaScript, Rust and Go ones beside the message.
        """
        labels = {"level": self.level, "source": "USER"}
        timestamp = datetime.fromtimestamp(self.at, UTC).isoformat()
        return {"message": self.message, **labels, "timestamp": timestamp, "labels": labels}


class Result(msgspec.Struct, frozen=True):
    """The answer to the request itself, kept as the bytes that go out: status code, JSON, extra headers."""

    status: int
    body: bytes
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    error: str | None = None
    error_type: str | None = None

    @classmethod
    def success(cls, output: dict[str, Any]) -> "Result":
        """Return 200 with the model's output. Raises `TypeError` for values that JSON can't represent."""
        return cls(200, msgspec.json.encode(output))

    @classmethod
    def failure(cls, error: FalError) -> "Result":
        """Return the error's own status, body and headers."""
        return cls(error.status, msgspec.json.encode(error.body), error.headers, str(error), error.error_type)


def cancelled() -> Result:
    """Return the result of a job that its owner cancelled."""
    return Result.failure(RequestError("client_cancelled", "The request was cancelled by the client"))


def new_request_id() -> str:
    """Return a new request id in fal's form."""
    return str(uuid.uuid4())


def origin(url: str) -> str:
    """Return scheme, host and port: a receiver that hangs delays only deliveries to its own origin."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job to be submitted.

    `input` is a JSON object with its seed already drawn, so that a second run gives the same picture. `call` is other
    JSON that a run needs (base URL of file links, lifetime of files). `app` is `owner/alias` as in the job's URLs;
    `owner` is the caller's id. `start_timeout` is in seconds. `max_owned`: how many jobs of this owner may wait, with
    this one; `max_owned_bytes`: inputs of its unfinished jobs. `result` is set where the answer is already known (an
    invalid input): the job is COMPLETED at once. `warning` is the first line of its log, if there is one.
    """

    app: str
    input: bytes
    owner: str = ""
    call: dict[str, Any] = msgspec.field(default_factory=dict)
    priority: Priority = Priority.NORMAL
    webhook: str | None = None
    start_timeout: float | None = None
    no_retry: bool = False
    store_io: bool = True
    max_queue_length: int | None = None
    max_owned: int | None = None
    max_owned_bytes: int | None = None
    result: Result | None = None
    warning: str = ""
    id: str = msgspec.field(default_factory=new_request_id)

    def start_by(self, now: float) -> float | None:
        """Return the Unix time by which it must have begun if it is accepted `now`; None: no limit."""
        return None if self.start_timeout is None else now + self.start_timeout


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job claimed by a worker. `fence` is the number of its claims so far; `attempt` counts from 1.

    `start_in`: seconds within which an engine must start it, from its claim; None: no limit.
    `store_io`: its payloads may be stored in the database. `damaged`: its input or call can't be read from there.
    """

    seq: int
    id: str
    app: str
    owner: str
    priority: Priority
    input: bytes
    call: dict[str, Any]
    attempt: int
    fence: int
    no_retry: bool
    start_in: float | None
    store_io: bool = True
    damaged: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """State of a job without its payloads. Times are Unix seconds; `seq` is the order of acceptance."""

    seq: int
    id: str
    app: str
    owner: str
    priority: Priority
    store_io: bool
    webhook: str | None
    submitted_at: float
    start_by: float | None = None
    status: Status = Status.IN_QUEUE
    queue_position: int | None = None
    logs: tuple[LogLine, ...] = ()
    inference_time: float = 0.0
    result_status: int | None = None
    error: str | None = None
    error_type: str | None = None
    expired: bool = False

    @classmethod
    def accepted(cls, new: NewJob, seq: int, now: float) -> "Snapshot":
        """Return the snapshot of a job that has just been stored."""
        return cls(
            seq=seq,
            id=new.id,
            app=new.app,
            owner=new.owner,
            priority=new.priority,
            store_io=new.store_io,
            webhook=new.webhook,
            submitted_at=now,
            start_by=new.start_by(now),
            logs=(LogLine(now, "WARN", new.warning),) if new.warning else (),
        )

    @property
    def completed(self) -> bool:
        """Whether the job has ended, with a result, an error or a cancel."""
        return self.status is Status.COMPLETED

    # --- transitions: each returns the next snapshot, or this one if the job has ended

    def started(self) -> "Snapshot":
        """Return it as claimed by a worker."""
        if self.completed:
            return self
        return msgspec.structs.replace(self, status=Status.IN_PROGRESS, queue_position=None)

    def requeued(self) -> "Snapshot":
        """Return it as waiting again."""
        return self if self.completed else msgspec.structs.replace(self, status=Status.IN_QUEUE)

    def logged(self, line: LogLine) -> "Snapshot":
        """Return it with one more log line, up to `MAX_LOGS`."""
        if self.completed or len(self.logs) >= MAX_LOGS:
            return self
        return msgspec.structs.replace(self, logs=(*self.logs, line))

    def finished(self, result: Result, inference_time: float = 0.0) -> "Snapshot":
        """Return it as ended; `inference_time` in seconds."""
        if self.completed:
            return self
        return msgspec.structs.replace(
            self,
            status=Status.COMPLETED,
            queue_position=None,
            inference_time=inference_time,
            result_status=result.status,
            error=result.error,
            error_type=result.error_type,
        )

    # --- in fal's form

    def urls(self, base_url: str) -> dict[str, str]:
        """Return the job's URLs; `base_url` is the queue's, without a slash at its end."""
        response_url = f"{base_url}/{self.app}/requests/{self.id}"
        return {
            "response_url": response_url,
            "status_url": f"{response_url}/status",
            "cancel_url": f"{response_url}/cancel",
        }

    def submit_body(self, base_url: str) -> dict[str, Any]:
        """Return the answer to a submit. Its status is always IN_QUEUE, as at fal."""
        return {
            "status": Status.IN_QUEUE.value,
            "request_id": self.id,
            "gateway_request_id": self.id,
            **self.urls(base_url),
            "logs": None,
            "metrics": {},
            "queue_position": self.queue_position or 0,
        }

    def status_body(self, base_url: str, *, logs: bool) -> dict[str, Any]:
        """Return the status object of polling and stream.

        fal's Python client raises KeyError for a missing key, and its Swift client decodes nothing without `logs`, so
        every status has them all; only `error` and `error_type` are left out, as at fal, for jobs that have not failed.
        Logs that were not asked for are null: there are clients that take no list then.
        """
        body: dict[str, Any] = {
            "status": self.status.value,
            "request_id": self.id,
            **self.urls(base_url),
            "queue_position": self.queue_position,
            "logs": [line.body() for line in self.logs] if logs else None,
            "metrics": {"inference_time": self.inference_time} if self.completed else {},
        }
        if self.error is not None:
            body |= {"error": self.error, "error_type": self.error_type}
        return body

    @property
    def status_code(self) -> int:
        """200 once completed, 202 before: fal's SDK looks at nothing else."""
        return 200 if self.completed else 202

    def webhook_body(self, output: bytes | None) -> bytes:
        """Return the webhook's JSON, the bytes to sign and send. `output`: the result's body, None if deleted."""
        body: dict[str, Any] = {"request_id": self.id, "gateway_request_id": self.id}
        if self.result_status == 200:
            body["status"] = "OK"
        else:
            body |= {"status": "ERROR", "error": f"Invalid status code: {self.result_status}"}
        body["payload"] = None if output is None else msgspec.Raw(output)
        if output is None:
            body["payload_error"] = "The payload is no longer stored"
        return msgspec.json.encode(body)

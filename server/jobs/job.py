"""A queue job's life, as a pure value. Status, status stream, result and webhook all answer from one `Snapshot`.

    IN_QUEUE ──started──▶ IN_PROGRESS ──finished──▶ COMPLETED
        ▲                      │
        └──────requeued────────┘

A failed job and a cancelled one are COMPLETED too: fal knows no other end, and says which it was by the status code of
the result. Nothing changes a job after its end. Sources: fal's "Queue" and "Webhooks".
"""

import enum
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipelines.messages import Priority
from server.fal.errors import FalError, RequestError

MAX_TRIES = 10  # fal's own limit on how often its queue tries one request
MAX_LOGS = 1000  # lines kept of one job; a run logs about five


class Status(enum.StrEnum):
    """The three words that fal's clients know; any other makes them poll for ever or raise."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


class Outcome(enum.Enum):
    """What a cancel came to: HTTP status and the word in its body."""

    REMOVED = (200, "OK")
    REQUESTED = (202, "CANCELLATION_REQUESTED")
    ALREADY_COMPLETED = (400, "ALREADY_COMPLETED")
    NOT_FOUND = (404, "NOT_FOUND")

    @property
    def http_status(self) -> int:
        """The answer's status code."""
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

    def body(self) -> dict[str, str]:
        """The line as fal writes it."""
        timestamp = datetime.fromtimestamp(self.at, UTC).isoformat()
        return {"message": self.message, "level": self.level, "source": "USER", "timestamp": timestamp}


class Result(msgspec.Struct, frozen=True):
    """The answer to the request itself, kept as the bytes that go out: status code, JSON, extra headers."""

    status: int
    body: bytes
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    error: str | None = None
    error_type: str | None = None

    @classmethod
    def success(cls, output: dict[str, Any]) -> "Result":
        """200 with the model's output. Raises `TypeError` for what JSON can't say."""
        return cls(200, msgspec.json.encode(output))

    @classmethod
    def failure(cls, error: FalError) -> "Result":
        """The error's own status, body and headers."""
        return cls(error.status, msgspec.json.encode(error.body), error.headers, str(error), error.error_type)


def cancelled() -> Result:
    """What becomes the result of a job that its owner cancelled."""
    return Result.failure(RequestError("client_cancelled", "The request was cancelled by the client"))


def new_request_id() -> str:
    """A request id in fal's form."""
    return str(uuid.uuid4())


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A request at the queue's door.

    `input` is what the runner gets: a JSON object with its seed already drawn, so that a second run gives the same
    picture. `call` is whatever JSON the runner wants to know beside it (base URL of file links, lifecycle wishes).
    `app` is `owner/alias` as the URLs handed out show it; `owner` is the caller's id. `start_timeout` is in seconds.
    `max_owned`: how many jobs of this owner may wait, this one among them.
    `result` is set where the answer is known already (an invalid input): the job is born COMPLETED.
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
    result: Result | None = None
    id: str = msgspec.field(default_factory=new_request_id)

    def start_by(self, now: float) -> float | None:
        """When it must have begun, if it is accepted now."""
        return None if self.start_timeout is None else now + self.start_timeout


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job in the hands of a worker. `fence` proves that it still is; `attempt` counts from 1."""

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
    start_by: float | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that can be said of a job but its payloads. Times are Unix seconds; `seq` is the order of acceptance."""

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
        """A job that has just come in."""
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
        )

    @property
    def completed(self) -> bool:
        """Whether the job has come to its end, whatever that was."""
        return self.status is Status.COMPLETED

    # --- the moves: each returns the next snapshot, and this one again when the job is past it

    def started(self) -> "Snapshot":
        """A worker has taken it."""
        if self.completed:
            return self
        return msgspec.structs.replace(self, status=Status.IN_PROGRESS, queue_position=None)

    def requeued(self) -> "Snapshot":
        """It waits again, at its old place."""
        return self if self.completed else msgspec.structs.replace(self, status=Status.IN_QUEUE)

    def logged(self, line: LogLine) -> "Snapshot":
        """One more line."""
        if self.completed or len(self.logs) >= MAX_LOGS:
            return self
        return msgspec.structs.replace(self, logs=(*self.logs, line))

    def finished(self, result: Result, inference_time: float = 0.0) -> "Snapshot":
        """It is answered; `inference_time` in seconds."""
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

    # --- what fal's clients read

    def urls(self, base_url: str) -> dict[str, str]:
        """Where the client goes on from here; `base_url` is the queue's, without a slash at its end."""
        response_url = f"{base_url}/{self.app}/requests/{self.id}"
        return {
            "response_url": response_url,
            "status_url": f"{response_url}/status",
            "cancel_url": f"{response_url}/cancel",
        }

    def submit_body(self, base_url: str) -> dict[str, Any]:
        """The answer to a submit. It always says IN_QUEUE, as fal's does."""
        return {
            "status": Status.IN_QUEUE.value,
            "request_id": self.id,
            "gateway_request_id": self.id,
            **self.urls(base_url),
            "queue_position": self.queue_position or 0,
        }

    def status_body(self, base_url: str, *, logs: bool) -> dict[str, Any]:
        """The status object of polling and stream. Python's client raises KeyError for a key that its state lacks, so
        every state has them all; `error` and `error_type` are there for failed jobs only, as fal has it."""
        body: dict[str, Any] = {
            "status": self.status.value,
            "request_id": self.id,
            **self.urls(base_url),
            "queue_position": self.queue_position,
            "logs": [line.body() for line in self.logs] if logs else [],
        }
        if self.completed:
            body["metrics"] = {"inference_time": self.inference_time}
        if self.error is not None:
            body |= {"error": self.error, "error_type": self.error_type}
        return body

    @property
    def status_code(self) -> int:
        """200 once completed, 202 before: fal's SDK goes by it alone."""
        return 200 if self.completed else 202

    def webhook_body(self, output: bytes | None) -> bytes:
        """The webhook's JSON, byte for byte what is signed and sent. `output`: the result's body, None if gone."""
        body: dict[str, Any] = {"request_id": self.id, "gateway_request_id": self.id}
        if self.result_status == 200:
            body["status"] = "OK"
        else:
            body |= {"status": "ERROR", "error": f"Invalid status code: {self.result_status}"}
        body["payload"] = None if output is None else msgspec.Raw(output)
        if output is None:
            body["payload_error"] = "The payload is no longer stored"
        return msgspec.json.encode(body)

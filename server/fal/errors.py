"""fal's error shapes. Each error carries its own status; the app turns it into a response in one place.

    FalError                  status, body, headers
    ├── InvalidInput          422, detail is a list of items (loc, msg, type, …): the caller's fault, never retried
    ├── RequestError          {"detail", "error_type"} and X-Fal-Error-Type: queue, runner and overload faults
    │   └── PassingFailure    429 for what failed outside, and may not fail the next time
    └── PlainError            {"detail"}: 400, 401, 403, 404, 413, …

Source: fal's "Model Errors" and "Request Error Types". Beside `detail` each body has `message`, which the JavaScript
clients show and fal's own server does not send. No error carries prompt text, pictures, keys or tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

ERROR_DOCS = "https://docs.fal.ai/errors/#"

# fal's request error types and the status each is answered with ("Request Error Types").
REQUEST_ERRORS: dict[str, int] = {
    "request_timeout": 504,
    "startup_timeout": 504,
    "runner_scheduling_failure": 503,
    "runner_connection_timeout": 503,
    "runner_disconnected": 503,
    "runner_connection_refused": 503,
    "runner_connection_error": 503,
    "runner_incomplete_response": 502,
    "runner_server_error": 500,
    "client_disconnected": 499,
    "client_cancelled": 499,
    "concurrent_requests_limit": 429,
    "bad_request": 400,
    "internal_error": 500,
}


_TRY_AGAIN = {"X-Fal-Needs-Retry": "1", "Retry-After": "1"}


class FalError(Exception):
    """An error answer: HTTP status, JSON body and extra headers."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(body.get("message", status)))
        self.status = status
        self.body = body
        self.headers = dict(headers or {})

    @property
    def error_type(self) -> str:
        """What a queue status and a webhook call this error."""
        return str(self.body.get("error_type", "bad_request"))


class PlainError(FalError):
    """`{"detail": …}` with any status."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, {"detail": detail, "message": detail}, headers)


class RequestError(FalError):
    """An infrastructure error of one of fal's `error_type`s."""

    def __init__(self, error_type: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        body = {"detail": detail, "message": detail, "error_type": error_type}
        super().__init__(REQUEST_ERRORS[error_type], body, {"X-Fal-Error-Type": error_type, **(headers or {})})


def overloaded(detail: str) -> RequestError:
    """Return a 429 with fal's internal header for "may be tried again". Clients go by the status alone."""
    return RequestError("concurrent_requests_limit", detail, _TRY_AGAIN)


class PassingFailure(RequestError):
    """429 for what may work in a moment although nothing is overloaded: clients try again.

    A job tries again for as often as any may, and then ends with `lasting`, which its client does not ask for again.
    """

    def __init__(self, detail: str, lasting: FalError) -> None:
        super().__init__("concurrent_requests_limit", detail, _TRY_AGAIN)
        self.lasting = lasting


def start_timed_out() -> RequestError:
    """Return the error for an `X-Fal-Request-Timeout` that passed before the work began.

    Which of fal's two timeout types goes with it is not documented; `startup_timeout` says what happened. The header
    keeps both clients from trying again.
    """
    message = "The request did not start within its timeout"
    return RequestError("startup_timeout", message, {"X-Fal-Request-Timeout-Type": "user"})


class InvalidInput(FalError):
    """422 with one item per fault. `getFieldErrors(name)` of the JavaScript client reads the last element of `loc`."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        message = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in items)
        body = {"detail": list(items), "message": message}
        super().__init__(422, body, {"X-Fal-Billable-Units": "0", "X-Fal-Retryable": "false", "X-Fal-Needs-Retry": "0"})

    @property
    def error_type(self) -> str:
        """The first fault's type."""
        return str(self.body["detail"][0]["type"])


def invalid(field: str, kind: str, message: str, ctx: Mapping[str, Any] | None = None) -> InvalidInput:
    """Return the error for one field of the body."""
    return InvalidInput([error_item(("body", field), kind, message, ctx)])


def error_item(
    loc: Sequence[str | int], kind: str, message: str, ctx: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return one entry of a 422's `detail`. The offending `input` is left out: it may be a prompt or a picture."""
    item: dict[str, Any] = {"loc": list(loc), "msg": message, "type": kind, "url": ERROR_DOCS + kind}
    if ctx:
        item["ctx"] = dict(ctx)
    return item
